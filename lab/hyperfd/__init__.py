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
                The numbers are this card's own: Card (n).
    procedure   recipe.HyperFD.run: for each task client.DataOwner.recommend, evaluate, upload; platform.Platform.accept
    where       detector and space are what is recommended, precision scores it; layers, learning and features are the
                ranker and a round of learning; messages is all that crosses the privacy boundary, client and platform
                its two sides, serving the platform over HTTP, live what really trains; baselines recommend by other
                means, evaluation is what is noted of a task, privacy attacks an upload, bounds is what a platform asks
                of one
    picture     view.explore, view.detections, view.curves

    departures  Of the paper its abstract, the start of its introduction and one figure's caption could be read, and no
                code was released. From it are: the setting, the extractor of meta-features and the encoder of
                configurations under a ranker, both kept learning task by task, the transformation between versions, and
                a loss of ranking, triplets and Synaptic Intelligence (Zenke et al., 2017). All forms and numbers of the
                equations, sizes, weights and settings are ours; no result of the paper is quoted.
                The 216 configurations are ours: the paper's space could not be read. A dearer configuration gets fewer
                steps of training, so that which one is best hangs on the data. All start from weights that the lab
                trained on plain scenes; the hardest negatives are sought in a random tenth of them. Ours.
                The extractor sees 64 x 64 pictures with a fourth channel that holds the filled boxes; beside its
                learned features stand six handcrafted ones, and it learns at a fiftieth of the rate, by a fresh pass
                over pictures in every third step; in the others vectors from before the round serve. Ours.
                Of a client's trials K are recommended, the others random; the platform learns from all. Ours.
                The transformation is a ridge regression on one client's subsets: it says nothing about directions in
                which that client's pictures do not vary. Its error is measured on that client's own subsets, which is
                no estimate of what older records lose, whose pictures are gone: no report shows it, and it ends a
                record's use only where maps fail even there.
                Noise blurs the meta-vectors, and the map is then left out, for the directions of the clean vectors can
                be read off it. The weights that a client sends have learned from its pictures as well: clip and noise
                are no differential privacy of the whole, and are not called so. An offer holds the vectors and results
                of all earlier clients. A meta-vector pools 16 pictures at least.
                A platform takes only uploads as honest clients send them (`bounds`): weights no farther than AdamW
                goes in a round, synapses that grow by 1000 at most (25 were seen), a map that stretches by 1 / √ridge
                at most (0.85) and turns no record by more than 0.5 of 1 - cos, an error up to 0.2, results from 0 to
                100 percent, a model that orders what was tried by at most 0.25 of NDCG worse (0.035). Its last eight
                versions are kept: `lab rollback`. A client who lies within these bounds is not found out. All ours.
                The embedded domains are composed scenes, their shifts synthetic: no benchmark of face detection.
"""

from ..core.rooms import at_first_use
from ..core.spaces.streams import Stream
from . import live, serving
from .outcome import HyperFDOutcome
from .recipe import HyperFD
from .space import Configuration, configurations

__all__ = ["Configuration", "HyperFD", "HyperFDOutcome", "Stream", "configurations", "live", "serving"]

__getattr__, __dir__ = at_first_use(globals(), "view")
