"""Hybrid SD: edge-cloud collaborative inference for Stable Diffusion models (Yan et al.,
arXiv 2408.06646).

    idea        One sampler trajectory, two U-Nets of one latent space. The large one, in the cloud, takes the first
                k of N steps, which decide what is in the picture; the small one, at the edge, takes the rest, which
                decide how it looks. Nothing is trained for it. What crosses over is a latent, far smaller than a
                picture of 512 x 512, with the solver's memory and the prompt's token ids.
    symbols     N steps   k steps in the cloud   s guidance scale   w = s - 1   e_u, e_c a U-Net's outputs without and
                with the prompt   e_S, e_T student's and teacher's   f_S, f_T their features   x a latent
                q its integers   u a flow's time, s there its share of noise, a its shift
    equations   (1) model_of_step   (2) guided   (3) guidance_embedding   (4) int8   (5) relative_error
                (6) cloud_share   (7) frechet_distance   (8) noise_loss   (9) output_loss   (10) feature_loss
                (11) significance   (12) boundary_scalings   (13) ddim_step   (14) pseudo_huber
                (15) perceptual_loss   (16) adaptive_weight   (17) hinge_loss   (18) latent_loss
                (19) velocity   (20) mixed   (21) flow   (22) shifted_share
    procedure   sampling.trajectory: one scheduler, set once, whose memory is carried from U-Net to U-Net;
                handoff.advance does so over a boundary, bit for bit, with every scheduler whose memory can travel, as
                a rehearsal tells before the first step (solvers.rehearsal), and casts it where the two sides compute
                in two precisions; pipeline.HybridPipeline is the pipeline for SD 1.x, SDXL, LCM, SD3, Flux and PixArt,
                sampler.HybridSampler samples its prompts in the cloud and at the edge; recipe.HybridSD.run sweeps k
                beside its controls
    where       components loads and checks the parts, text encodes prompts, families asks a model of each kind,
                schedules opens a scheduler, editing draws over a picture, seeding leaves out what a seed gives,
                adapters adds LoRA, batching shares a model between clients, policies chooses k, requests holds what is
                asked against what can be drawn; blocks makes a small U-Net out of a large one, distillation teaches it,
                consistency makes a model of few steps, tinyvae and discriminator teach a small decoder, scores rank
                what can be cut, references and costs count the published models without weights; prompts are captions
                whose pictures are read back, bound those of two things and the models that draw them; sweep draws and
                measures, baselines are what others do with the same cloud cost, branches what leaves one trajectory at
                each step; wire is the hand-off as bytes, cloud the service and its client, denoisers the models of
                either side
    picture     view.explore, view.splitting, view.words, bound.view.claim

    departures  The paper's full text was not available: the method follows the authors' released code; the equation
                numbers are this card's own. (4), (5) and (7) are ours; (19) is that of
                Salimans and Ho (arXiv 2202.00512), (20) and (21) are those of Liu et al. (arXiv 2209.03003), (22) is
                that of Esser et al. (arXiv 2403.03206).
                A step of a solver of second order asks its model twice; costs count calls, the split counts steps.
                The released code keeps both U-Nets in one process. The hand-off, its checks and int8 are ours, and so
                are the transformers, drawing over a picture, the policies for k and calls shared between clients, whose
                last bits may differ from those of a lone request. Markup in PixArt's prompts is not cleaned. DeepCache,
                T-GATE and EC-Diff are reimplemented from their papers and released code; how many steps each takes for
                the cloud cost of k is our choice.
                Flux without an embedding of the guidance is guided with two passes; guidance=1 takes one.
                Where only one of two U-Nets is a consistency model, the one that embeds the guidance is evaluated once
                a step and the other twice; the released code looks at the first model only.
                Quality here is what a trained reader finds in pictures of 32 x 32, and a Frechet distance on that
                reader's features. Neither is FID, IS or CLIP score, so none of the paper's numbers can be compared.
                The embedded U-Nets predict the velocity (19), not the noise: where nearly everything is noise, and only
                the prompt says what belongs where, the noise loss hardly depends on it; on latents of 8 x 8 it never
                taught the models where things are.
                On the embedded scenes the paper's order is not the better one: what the edge loses is shape, which is
                decided in the last steps, not in the first (`data/hybridsd`).
                The models of two bound things (`bound`, `data/bound`) show it: their flow is shifted for latents of 8 x
                8, so that meaning is decided early, and their edge is cut by its scores, taken where the cloud hands
                over and not from noise, and taught late steps far oftener. That both sides are guided by 3, not 7, and
                that the shift is measured from latents of 32 x 32 is ours.
                The embedded edge U-Net keeps a quarter of every residual block's inner width and three of four heads;
                the paper ranks its layers by a significance score first. Widths are rounded to 16, not 32: ours are
                narrower. Pairs of features are found by structure; for SD-v1.4 they are the paper's six.
                The tiny decoder of the embedded models is taught by the large decoder alone, without a discriminator.
                Costs count guidance and the products of attention, and one decoding; the published figures leave
                attention's products out and count the decoding twice.
"""

from ..core.rooms import at_first_use
from . import bound
from .editing import Edit
from .outcome import HybridSDOutcome
from .pipeline import HybridPipeline
from .prompts import PromptTask, embedded, scenes
from .recipe import HybridSD
from .sampler import HybridSampler
from .samples import Samples

Split = HybridPipeline  # its first name, which notebooks of readers may still use

__all__ = [
    "Edit",
    "HybridPipeline",
    "HybridSD",
    "HybridSDOutcome",
    "HybridSampler",
    "PromptTask",
    "Samples",
    "Split",
    "bound",
    "embedded",
    "scenes",
]

__getattr__, __dir__ = at_first_use(globals(), "view")
