"""AceNAS: learning to rank ace neural architectures with weak supervision of weight sharing (Zhang et al., 2021,
arXiv 2108.03001).

    idea        A search needs the few best architectures, not a good estimate of all of them. Many weak labels (the
                accuracy with a super-net's weights, sizes) teach a graph encoder what architectures look like; then a
                few true labels teach it to rank, by a gradient that cares about the top of the list.
    symbols     A adjacency   H nodes' features   B budget, T rounds   y labels   r relevance   s scores   p ranks
                g gain   d discount   S_ij sign(r_i - r_j)   sigma steepness   lambda what stands for a gradient
    equations   (1) normalised   (2) graph_convolution   (3) sort_pool   (4) pretraining_loss   (5) relevance
                (6) gain   (7) discount   (8) dcg   (9) ranks   (10) ndcg_change   (11) lambda_gradient
                (12) mse   (13) ranknet   (14) pair_divergence   (15) allowance   (16) layers   (17) crowding
                (18) hypervolume
                The numbers are this card's own: Card (n).
    procedure   recipe.AceNAS.run: pre-training on weak labels, search.half_exploit in T rounds, the top ones trained
    where       layers encodes graphs, scorers learns (graph encoders, LightGBM), search says what is trained and holds
                the baselines, fronts seeks label and cost at once, supernet trains cells alone and all in one, metrics
                judges a ranking, contests are the benchmarks as they were last run
    picture     view.explore, view.curves

    departures  Only the paper's abstract was available: the method follows the released code, the equation numbers are
                this card's own, and no result of the paper is quoted.
                LambdaRank takes ranks from the scores, as in Burges (2010). The released code takes them from the
                labels in ascending order: rank_by='label_ascending'. Which is better is measured, not assumed.
                NAS-Bench-201 has operators on its edges; the usual graph of eight nodes stands for a cell. Ours.
                Pre-training makes 40 passes in batches of 64 over all weak labels; the release makes 300 in batches of
                20 over four fifths of them: AceNAS.paper('benchmarks').
                A scorer that gives every architecture the same score has collapsed and is restarted, up to twice; after
                that the first weak label, or else a random draw, stands in for its scores. Ours.
                On NAS-Bench-201 weak labels save true labels for ranking the whole table, but not for finding the pick:
                data/acenas has the measurements.
                The best weights of a round are chosen on the training set itself, as in the release.
                LightGBM's lambdarank is offered as a scorer on equal terms; weak labels are among its features. Ours.
                Ties are broken by a draw from the seed and the architecture, and NDCG takes the mean over all orders;
                nothing depends on the order of a table's rows. Ours.
                With two objectives the scorer still ranks by the label alone, since costs are known without training:
                the next to be trained come from the first non-dominated layers in score and cost, spread out by the
                crowding distance of NSGA-II (Deb et al., 2002). The hypervolume is measured from the costliest
                architecture's cost and the label's lowest quintile, as a percentage of that of the table's own front.
                Ours.
                Tables without validation accuracies are searched on the test accuracy of one training and judged by the
                mean: results are not comparable with those of searches on a validation set.
"""

from ..core.rooms import at_first_use
from ..core.spaces.architectures import Graph, Space
from .outcome import AceNASOutcome
from .recipe import AceNAS

__all__ = ["AceNAS", "AceNASOutcome", "Graph", "Space"]

__getattr__, __dir__ = at_first_use(globals(), "view")
