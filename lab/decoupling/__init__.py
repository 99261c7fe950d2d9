"""Decoupling: each input's own path through a network (Li, Ji, Lin, Zhang, Yan, Wu, Huang, Shao: Interpretable Neural
Network Decoupling; ECCV 2020, arXiv 1906.01166).

    idea        Beside each convolution stands a small controller that reads the convolution's input and says which of
                its filters this input needs. The bits of all layers are the input's calculation path. Training makes
                the bits informative about the class, consistent with the layer's output, and few. The paths then
                explain answers, save work, and give altered pictures away.
    symbols     a_l what layer l reads   s_l its mean over the picture   y_l logits   g noisy logits   eps noise
                v1 soft bits   v2 hard bits   z_l the architecture encoding   out_l the layer's output before the gate
                t class   W_l head of layer l   r keep ratio   lam_m, lam_k, lam_s weights of the losses
    equations   (1) squeeze   (2) control   (3) saturating_sigmoid   (4) binarised   (5) semhash   (6) encoding
                (7) gated   (8) mutual_information_loss   (9) kl_out_z   (10) kl_z_out   (11) sparsity
                (12) sparsity_at   (13) path_macs
    procedure   recipe.Decoupling.run: gates are inserted (placement.insert_gates), everything is trained together, what
                is never on is taken out (removal), the rest is skipped input by input (skipping)
    where       insert_gates puts a gate behind batch norm and activation of each convolution but the first; its
                controller reads the convolution's input, so that the bits are known before the convolution runs.
                In networks of tokens the hidden units of an MLP are the filters, over patches as over pixels
    paths       paths.record, then states, class_paths, class_similarity, separation, probe; intervention.knock_out and
                intervention.force ask whether paths matter; attacks and detection find altered pictures by them
    picture     view.explore, view.similarity

    departures  The paper's full text was not available: the equation numbers are this card's own, and their form is
                that of the authors' released code. What is not theirs is marked as ours.
                The released objective maximises information about the label, whatever the abstract says of the input;
                `target='prediction'` takes the network's own answer instead. Ours.
                Half of the pictures of a batch are binarised in training (mix='sample', as SemHash does); the releases
                draw channels with replacement (mix='channel') or use the numbers of channels for pictures
                (mix='index'; with more channels than pictures theirs ends in an error, whereas ours draws among the
                pictures there are).
                Controllers start with bias 2, so that nearly all filters are on at first; the release has 1 (`bias`).
                The defaults suit a few hundred steps on small networks: lam_m is 30 times the published one, lam_s
                twice that of ResNet-18. `paper(name)` gives the published ones. Ours.
                The release's additions to the sparsity loss of ResNet-56, a norm over the batch axis and a factor of
                0.3 for downsampling layers, are left out.
                Networks of tokens (ViT, Swin, MLP-Mixer, ConvNeXt) are ours: a unit's mean over the tokens stands for
                the mean over the picture in (1), (9) and (10), its gate opens or closes for all tokens of a picture,
                and the layer behind it reads what is on. Queries, keys, values and what joins the stream have no gate.
                Depthwise layers belong to the gate of the layer before them; layers with groups are not gated. Ours.
                Bits pass gradients in use just as in training, through v1: attacks and attributions need that. Ours.
                Path extraction, class paths, interventions, the probe and detection follow the abstract and the
                protocol of Wang et al. (CVPR 2018); their measures are ours.
"""

from ..core.rooms import at_first_use
from . import attacks, detection, equations, intervention, paths, placement, skipping
from .outcome import DecouplingOutcome
from .recipe import Decoupling

__all__ = [
    "Decoupling",
    "DecouplingOutcome",
    "attacks",
    "detection",
    "equations",
    "intervention",
    "paths",
    "placement",
    "skipping",
]

__getattr__, __dir__ = at_first_use(globals(), "view")
