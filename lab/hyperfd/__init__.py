"""HyperFD: privacy-preserving online AutoML for domain-specific face detection (Yan et al., CVPR 2022,
arXiv 2203.08399).

    idea        Owners of pictures come one after another. A platform that never sees a picture recommends each a few
                configurations of a detector, from pooled meta-features of random subsets; what the owner's own trials
                teach is learned on the owner's side of the privacy boundary, and comes back as weights and a map
                between the extractor's versions, so that records of old tasks stay of use although their pictures are
                gone.
    symbols     z a picture's vector   v meta-vector of a subset, d numbers   c a configuration's code   s score
                y result, r relevance   R subsets of m pictures   K recommended   omega, Omega synaptic importances
                theta* weights where a task began   D, tau the map between versions
    equations   (1) meta_vector   (1a) handcrafted_features   (2) joined   (3) relevance   (4) ranking_loss
                (5) triplet_loss   (6) path_importance   (7) consolidated   (8) synaptic_penalty   (9) transformation
                (10) transformed   (11) transformation_error   (12) subset_scores   (13) private   (14) regret
                (15) clipped_moments   (16) released
                The numbers are this card's own: Card (n).
    procedure   recipe.HyperFD.run: for each task client.DataOwner.recommend, evaluate, upload; platform.Platform.accept
    where       detector and space are what is recommended, precision scores it; layers, learning and features are the
                ranker and a round of learning; messages is all that crosses the privacy boundary, client and platform
                its two sides, serving the platform over HTTP, live what really trains; baselines recommend by other
                means, evaluation is what is noted of a task, privacy attacks an upload, bounds is what a platform asks
                of one; portfolio says which of the scored are recommended, drift what stored vectors have lost, boxes
                which faces were found; claim is the benchmark as it was last run
    picture     view.explore, view.detections, view.curves

    departures  Of the paper its abstract, the start of its introduction and one figure's caption were available, and no
                code was released. Taken from it are the setting, the extractor of meta-features and the encoder of
                configurations under a ranker, both kept learning task by task, the transformation between versions, and
                a loss of ranking, triplets and Synaptic Intelligence (Zenke et al., 2017). All forms and numbers of the
                equations, sizes, weights and settings are ours; no result of the paper is quoted.
                The 216 configurations are ours: the paper's space could not be read. A costlier configuration gets
                fewer training steps, so that which one is best depends on the data. All start from weights that the lab
                trained on plain scenes; the hardest negatives are looked for in a random tenth of them. Ours.
                The extractor sees 64 x 64 pictures with a fourth channel that holds the filled boxes; beside its
                learned features stand six handcrafted ones, and it learns at a fiftieth of the rate, by a fresh pass
                over pictures in every third step; in the others vectors from before the round serve. Ours.
                K of a client's trials are recommended and the others random; the platform learns from all of them.
                Ours.
                The transformation is a ridge regression on one client's subsets: it says nothing about directions in
                which that client's pictures do not vary, and its error on these subsets is 10 to 200 times too small
                for earlier tasks. In a run every earlier client therefore keeps subsets at home that it has not sent,
                and measures on them what its record has lost by all maps since; a record that has lost more than
                drift.MOST_DRIFT is not learned from any longer. A platform that is served over HTTP asks no client
                again, and measures a map on pictures of its own. Ours.
                Of the K recommended the two best are taken as they are scored, each of the others differs from all
                before it in three decisions: those with the highest scores are near-copies of one another. While only
                one task is known the best on average is recommended, and before that configurations that lie far apart.
                This was chosen on orders 100 to 105 of the detectors, none of which is reported. Ours.
                With noise=(epsilon, delta) a client releases one vector of all its pictures, Card (15) and (16), and
                whatever else it sends is computed from that: the recommendation it tries, the step of the weights,
                which a round then learns from the release alone. The extractor stays as it is, so that the map is the
                identity. The release is private for one picture in another's place by Opacus' accountant; the results,
                given by detectors that saw the pictures, and the number of pictures are sent as they are. A second
                release, after the platform's extractor has changed, would spend as much again and is refused. The noise
                is drawn in floating point, from the system's randomness. A number as noise, which only blurs vectors by
                Card (13), is deprecated. An offer holds the vectors and results of all earlier clients, without names.
                A meta-vector pools at least 16 pictures, which the platform requires, too.
                A platform takes only uploads as honest clients send them (`bounds`): weights no farther than AdamW
                goes in a round, importances worth no more loss than there is, a map that its own pictures do not
                contradict, a model that orders what was tried as well as any before, results that are not the contrary
                of what many have found. Each client may have a key of its own (`lab clients`), 24 rounds a day and
                eight records. An upload that loses a race is merged (Xie et al., 2019) or learned again from the trials
                already paid for. The last eight versions are kept: `lab rollback`. A client that lies within these
                bounds is not caught: of 20 hostile clients among 100, five and two were accepted in two orders, and the
                regret of the honest ones rose by 2.0 and 0.1 points (data/faces/trust.json). All ours.
                Flower is no transport here: flwr 1.42.0 asks for packaging < 26, protobuf < 7, rich < 15,
                typer < 0.21, fastapi < 0.139, starlette < 1.4 and uvicorn < 0.50, so that `pip install --dry-run flwr`
                into the environment of `constraints.txt` sets seven packages back (packaging from 26.3 to 25.0,
                protobuf from 7.36 to 6.33, starlette from 1.10 to 1.3); it needs an environment of its own.
                The embedded domains are composed scenes with synthetic shifts, not a benchmark of face detection.
"""

from ..core.rooms import at_first_use
from ..core.spaces.streams import Stream
from . import live, serving
from .outcome import HyperFDOutcome
from .recipe import HyperFD
from .space import Configuration, configurations

__all__ = ["Configuration", "HyperFD", "HyperFDOutcome", "Stream", "configurations", "live", "serving"]

__getattr__, __dir__ = at_first_use(globals(), "view")
