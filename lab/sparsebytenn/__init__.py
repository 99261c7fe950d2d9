"""SparseByteNN: fine-grained kernel sparsity with kernels that make it fast (Xu, Liu, Xu, Wang, Li, Yan, Li, Fu, Pan,
Chen; 2023, arXiv 2310.19509). Built from the abstract; the body of the paper was not available, and the design is ours.

    idea        Between whole channels, which cost accuracy, and single weights, which no kernel can make fast, lies the
                block: G rows of a weight matrix that lose the same input together. A kernel then loads an input once
                and multiplies it with G weights. Which rows form a block is free: rows are rearranged over the whole
                network until blocks hold what may go, and the network computes the same function as before.
    symbols     W weight (OC, IC, taps)   S saliency of its kernels   G rows and H inputs of a block, H = 1 as a rule
                B block scores   M mask   s share of blocks removed   t threshold, or the step   z output
                T temperature
    equations   (1) saliency   (2) block_scores   (3) mask_layer   (4) mask_global   (5) spread   (6) retained
                (7) objective   (8) sort   (9) greedy   (10) swaps   (11) cubic   (12) distillation
    patterns    1 x 1 convolution and linear layer: G x 1. k x k convolution: G rows x 1 input x all taps. First
                convolution, depthwise convolutions and the last layer: dense. For products in int8, which take four
                inputs at once: block=(4, 4), 4 rows x 4 neighbouring inputs x all taps; (1, H) and (G, G) besides.
                Which inputs are neighbours is decided by the rows of the layers that write them, so a class of
                channels is searched for its writers and its readers together, one class after another.
    procedure   recipe.SparseByteNN.run: sparsity rises along Card (11) while orders and masks are found anew, then both
                are frozen; the dense network is the teacher throughout
    where       rearrange.survey sorts the layers, pattern.Pattern holds orders and masks while they train,
                rearrange.permute moves rows, columns, norms and depthwise filters of a whole class at once
    picture     view.explore
    engine      engine.compile(net, example) takes any network that can be traced, whatever made its zeros:
                convolutions of one or two axes in groups, dilated, transposed; linear layers, products of matrices,
                attention; batch, layer, group and instance norms, softmax; pools of any window or size, means, resizes;
                activations, sums, products and their kin with broadcasting; concatenation, padding, slices,
                shuffles and all that renames or moves numbers. Several inputs and outputs stay as they are. What it
                lacks runs in torch between segments, and the profile says where and why; strict=True refuses it
    threads     engine(x, threads=2): all work on one image together, and what comes out is the same to the last bit; so
                it is in a browser, where the page is cross-origin isolated
    layers      swap puts sparse modules into a network of torch where zeros pay; torch exports and compiles it

    departures  From the abstract come the goal, MobileNet-v1, 30 % sparsity, one pattern for each kind of operator, and
                that the whole network is rearranged. Blocks, equations, searches, schedule and losses are ours, and
                their numbers this card's own; no table of the paper is reproduced.
                Saliency is relative to its layer, since a batch norm undoes a layer's own scale.
                From the first step on, orders are searched for the final sparsity; a search never returns an order that
                keeps less than the present one.
                A kernel removed early can come back if its block is chosen again before the pattern is frozen.
"""

from ..core.rooms import at_first_use
from .outcome import SparseByteNNOutcome
from .recipe import SparseByteNN
from .swapping import Swap, swap

__all__ = ["SparseByteNN", "SparseByteNNOutcome", "Swap", "swap"]

__getattr__, __dir__ = at_first_use(globals(), "view")
