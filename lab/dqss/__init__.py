"""DQSS: differentiable quantisation-strategy search, a way to quantise for each layer (2024, arXiv
2404.08010).

    idea        No single way of setting a quantiser's range is best for every layer. Each layer gets several, mixed by
                learned shares; the mixture is summed before the layer reads it, so that the search costs one
                convolution.
    symbols     W weight   x what the layer reads   Q_i(x), Q_j(W) what strategies make of them   a, b logits
                p, q their softmax   T temperature   G gradient of a mixture   C errors of strategies against each other
    equations   (1) probabilities   (2) branches   (3) mixture   (4) efficient   (5) gradient_logits
                (6) error_products   (7) loss_of_mean   (8) expected_loss   (9) policy   (10) hard   (11) gap
                (12) entropy   (13) space_size
    what runs   (4) is a layer whose weight and input are a layers.Mixture each: (3) in parts that fit the cache, with
                (5) written out on its way back. (2), (7) and (8) are computed nowhere but say what (4), arg-max and
                (9) rest on; tests hold the running network to all of them
    strategies  'post': max, p99.9, p99.99, p99.999, mse, kl, als, aciq, pams (observers.OBSERVERS) and easyquant
                'aware': dorefa, pact, lsq, lsq+, dsq, tqt, pams (quantisers, core.quantisation.quantisers); pact leaves
                weights to dorefa
    algorithms  dqss: train the mixture, keep arg-max (the paper's)   dqss_safe: that first; then near-duplicates are
                one, logits learn the expected loss of a draw, and coordinate descent ends it, from the best of both
                arg-maxes and the best uniform strategy
                uniform: the best pair of strategies used everywhere   greedy: one sweep from there   random: a control
    procedure   recipe.DQSS.run: calibrate, stage `search`, stage `draws` (dqss_safe), keep; 'aware': stage `restart`
    where       placement finds the tensors, strategies makes what each can be rounded by, space holds all of them in
                one network, search learns and hardens, core.onnx.qdq writes ONNX
    picture     view.explore, view.costs

    departures  The paper's full text was not available. (1) to (4) are what its abstract and a review say; the equation
                numbers, the candidates, all settings, what is searched on, and everything about safety are this lab's.
                Identical strategies count as one from the start. Weights that meet only zeros during calibration do not
                affect a range (`strategies.layer_weights`). First and last layer keep 8 bits (`ends`).
                Grids are symmetric, from 0 behind a ReLU; those of LSQ+ are not, nor are those of activations with
                `scales` 'uneven', where a rule treats each side of 0 as a tensor of its own.
                The calibration objective is the distance to the float answers: KL of classes at a `temperature`, MSE of
                pictures. All assignments of networks of four layers were tried (data/dqss): there the search ends close
                to the best, ahead of every uniform pair; on a deeper network it overfits its calibration.
                ALS is the inner problem of ADMM without its outer one. DSQ's sharpness is fixed, LSQ+ moves its lower
                end by whole steps, DoReFa's weight grid holds 0: all deploy on integers.
                `remedies` work against underfitting; the paper's own remedy is not known.
                The arg-max of a mixture is unsafe: errors of strategies cancel in the sum, (7), and no single strategy
                has that advantage. The soft-to-hard gap, (11), is always reported.
"""

from ..core.rooms import at_first_use
from .outcome import DQSSOutcome
from .recipe import DQSS

__all__ = ["DQSS", "DQSSOutcome"]

__getattr__, __dir__ = at_first_use(globals(), "view")
