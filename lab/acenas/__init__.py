"""AceNAS: learning to rank ace neural architectures with weak supervision of weight sharing (Zhang et al., 2021,
arXiv 2108.03001).

    idea        A search needs the few best architectures, not a good guess of all. Many weak labels (the accuracy with
                a super-net's weights, sizes) teach an encoder of graphs what architectures are; then a few true labels
                teach it to rank, by a gradient that looks at the top of the list.
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
                judges a ranking
    picture     view.explore, view.curves

    departures  Of the paper only the abstract could be read: the method is its released code, the equations' numbers
                are this card's own, and no result of the paper is quoted.
                LambdaRank takes ranks from the scores, as in Burges (2010). The released code takes them from the
                labels in ascending order: rank_by='label_ascending'. Which is better is measured, not assumed.
                NAS-Bench-201 has operators on its edges; the usual graph of eight nodes stands for a cell. Ours.
                Pre-training is 40 passes in batches of 64 over all weak labels; the release has 300 in batches of 20
                over four fifths of them: AceNAS.paper('benchmarks').
                A scorer that gives all the same score has collapsed, and is begun again, up to twice; then the first
                weak label stands in for its scores, or a draw. Ours.
                Weak labels of NAS-Bench-201 save labels for the order of the whole table, not for the pick: what was
                measured stands in data/acenas.
                The best weights of a round are chosen on the training set itself, as in the release.
                LightGBM's lambdarank is a scorer of equal standing; weak labels are features of it. Ours.
                Where scores are equal, a draw by the seed and the architecture chooses, and NDCG counts the mean of all
                orders; nothing hangs on the order in which a table stands. Ours.
                With two objectives the scorer still ranks by the label alone, since costs are known without training:
                what is trained next are the first layers by score and cost, spread by the crowding distance of NSGA-II
                (Deb et al., 2002). The hypervolume is counted from the dearest architecture's cost and the label below
                which a fifth of the table lies, in percent of the table's own front. Ours.
                Tables without validation accuracies are searched on one training's test accuracy and judged by the
                mean: results are not comparable with those that search on a validation part.
"""

from ..core.rooms import at_first_use
from ..core.spaces.architectures import Graph, Space
from .outcome import AceNASOutcome
from .recipe import AceNAS

__all__ = ["AceNAS", "AceNASOutcome", "Graph", "Space"]

__getattr__, __dir__ = at_first_use(globals(), "view")
