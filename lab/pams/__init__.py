"""PAMS: quantised super-resolution via parameterized max scale (Li, Yan, Lin, Yan, Ji; ECCV 2020,
arXiv 2011.04212).

    idea        A super-resolution network has no norms, so the ranges of its activations differ from layer to layer and
                from picture to picture. Each quantised tensor gets one trainable largest value alpha, which is both
                clamp and scale; a float teacher of the same architecture says which places matter.
    symbols     b bits   n levels a side   alpha the largest value   W weight   x activation   M the calibration's
                statistic   F what the upsampler reads   S(F) its spatial map   P, P_q parameters, and those quantised
    equations   (1) levels   (2) weight_scale   (3) quantise_weight   (4) quantise   (5) quantise_unclamped
                (6) gradient_x   (7) gradient_alpha   (8) statistic   (9) moving_average   (10) spatial_map
                (11) knowledge_transfer   (12) pixel_loss   (13) equivalent_parameters   (14) bit_operations
    placements  fig1: what each convolution of a residual block reads (the paper's drawing)
                repo: the shortcut, what the second convolution reads, the end of the branch (the released code)
                cadyq: what the block reads, once for convolution and shortcut, then as repo (a later correction)
                full: everything (ours). All but full leave head, last body convolution, upsampler and tail in float
    procedure   recipe.PAMS.run: one stage `quantise`; its first steps calibrate
    where       core.quantisation.bn_folding folds what stands between a convolution and its quantiser, placement finds
                blocks and places quantisers in any traced network, packed stores b-bit weights, core.onnx.qdq writes
                ONNX, core.onnx.ort_report asks onnxruntime what became of it
    picture     view.explore, view.bits

    departures  The paper's full text was not available: equations follow the authors' released code, and their numbers
                are this card's own. The printed gradient of alpha could not be checked; (7) is what the released code
                computes, and at 2 bits its sign differs from that of a gradient that is 0 inside the range.
                After a ReLU the grid starts at 0 and uses all codes; the paper's wastes half of them (grid='signed').
                Ours. alpha is calibrated to a moving average over all batches seen, whose weights sum to 1. With the
                release's settings its average never takes effect: alpha is what the last batch of the first epoch gave
                ('last_batch').
                alpha has no gradient while it is calibrated, so that Adam starts without a history of it; the release
                steps and then overwrites it. Both rates fall along a cosine; the release halves them three times
                ('halved_rates').
                The student starts from the teacher. The release's script leaves it random ('random_student'), and the
                published numbers could not be reached that way.
                Pixels are in [0, 1] here and in 0..255 there: L1 is taken on 0..255 and the rates of alpha are divided
                by 255, except for networks whose own pictures go up to 255.
                A loss of the user's own, Task.loss or Task.batch_loss, takes the place of (12); (11) stays. Ours.
                statistic='largest' calibrates alpha to the largest value of all batches instead of (8): small patches
                show less of the range than whole pictures do, and at 8 bits clipping costs more than rounding. Ours.
                In `full` the picture itself, at the input and the output, keeps 8 bits and its whole range. Ours.
                The last step is reported, whereas the release picks the best epoch on a test set.
                `bitops` counts a convolution that reads float with 32 bits; the release counts it as quantised.
                Each name in quotes can be given in the recipe's `released`.
"""

from ..core.rooms import at_first_use
from .outcome import PAMSOutcome
from .recipe import PAMS, unpack

__all__ = ["PAMS", "PAMSOutcome", "unpack"]

__getattr__, __dir__ = at_first_use(globals(), "view")
