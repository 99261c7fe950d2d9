"""GAL: structured pruning by generative adversarial learning (Lin, Ji, Yan, Zhang, Cao, Ye, Huang, Doermann; CVPR 2019,
arXiv 1903.09291).

    idea        A copy G of a trained network B carries a soft mask m on each of its structures. G learns to answer so
                much like B that a discriminator D cannot tell the two apart, while an L1 norm closes the masks; FISTA
                makes them exactly 0. Zeroed channels, blocks, branches and inputs are removed together, without labels
                until the fine-tuning.
    symbols     m mask   lam weight of the L1 norm   mu weight of the data loss   f_b, f_g output vectors
                d_b, d_g raw logits of D   alpha FISTA's momentum   y the extrapolated mask   R(W_D) regulariser
                sigma standard deviation of f_b
    equations   (1) masked   (2) adversarial_value   (3) data_loss   (4) sparsity   (5) regulariser_l1
                (6) regulariser_l2   (7) regulariser_adversarial   (8) generator_loss   (9) momentum
                (10) extrapolate   (11) shrink   (12) output_scale   (13) curvature
    procedure   recipe.GAL.run: stage `prune` (recipe.GAL._prune), removal (core.graph.surgery.remove), stage `finetune`
    where       structures.find says where masks sit, insert_masks puts them there, fold multiplies them into
                the weights exactly; layers holds what is learned, players the discriminator's side
    picture     view.explore

    departures  The paper's full text was not available: the equation numbers are this card's own, and where sources
                disagree the losses follow the authors' released code (mean squared error over batch and classes;
                G minimises -log D(f_g)).
                Masks start at 1, so that G equals B at first; the release draws them from N(0, 1), whose negative half
                is closed before there is any evidence ('normal_masks'), and for DenseNet from U(0, 1) ('uniform_masks';
                its two transitions, which use N(0, 1), are not treated separately). The published rates go with these
                starts: `paper` uses them.
                The gradient is taken at the extrapolated mask; the release takes it at the present one
                ('grad_at_current') and also back-propagates the L1 norm beside the proximal step ('l1_in_gradient').
                D has LeakyReLUs between its layers and one raw logit; the release has no activations, and a sigmoid in
                front of a loss that applies another ('affine_discriminator').
                Channels that several layers write (a gate and what it multiplies, a sum), those that a convolution
                reads in groups and the hidden units of an MLP over tokens have one mask entry each, in front of all
                layers that read them: there a closed entry can be removed exactly, whatever norms, activations or
                gates stand in between; that of a head stands in front of the projection and takes query, key and value
                with it. The blocks of a transformer are its residual branches, one of attention and one of the MLP. The
                paper has none of these, nor masks on the channels of a residual stream (units 'stream'). Ours.
                The noise z is the network's own dropout modules, where it has any.
                Batch norms keep the baseline's statistics while masks train: with batch statistics a mask in front of a
                norm can shrink at no cost ('batch_statistics'). Ours.
                Both players see the outputs divided by sigma, so that L_data is a share of f_b's variance, and the same
                mu, lam and clip suit networks whose outputs differ in size; the release takes outputs as they are
                ('raw_outputs', which the paper's settings need). Ours.
                A network with several outputs (a detector's heads) has a sigma for each; L_data is the mean over them,
                and D sees all of them side by side. Ours.
                The gradient of a step is clipped; otherwise the data loss occasionally diverges (`clip`). Weights and
                masks are clipped separately: steep weights must not weaken what holds masks open against lam. Ours.
                With a `macs_ratio` masks close in five rounds, each to the same share of the multiply-adds of the one
                before (budget.Budget). Within a round they lie between 0 and 1 and G's weights are frozen: otherwise a
                larger mask or weight further on would undo a mask that shrinks. FISTA's rate is divided by (13), and
                lam grows, in proportion to the multiply-adds that an entry would save. After a round the masks still
                open are set to 1 again, and G's weights and batch norms are trained. Without a `macs_ratio` all masks
                shrink together until many close at once, and in a short run the weights cannot keep up. Ours.
                Each name in quotes can be given in the recipe's `released`. The R(W_D) weights of L1 and L2 (1e-4) are
                ours.
"""

from ..core.rooms import at_first_use
from .outcome import GALOutcome
from .recipe import GAL

__all__ = ["GAL", "GALOutcome"]

__getattr__, __dir__ = at_first_use(globals(), "view")
