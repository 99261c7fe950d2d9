"""Train the small models of two bound things: `python data/bound/make.py`, about an hour of one core.

A cloud U-Net that matches a flow on the latents of `data/hybridsd`'s autoencoder, its text encoder, an edge that the
significance scores have pruned and that learned late steps most, and the reader of the pictures. A second start goes on
where a kill left it (`--work FOLDER`); `--only reader` trains that alone, so that another core can take it, and
`--only edge` teaches the edge that is kept here once more, by the cloud that is kept: the trial that
README tells of.
"""

import argparse
import copy
import json
import runpy
import shutil
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from transformers import CLIPTextConfig, CLIPTextModel

from lab.core import store
from lab.core.data.batches import shifted, shuffled
from lab.core.data.pairs import LABELS
from lab.core.training import seeded
from lab.hybridsd import blocks, bound, prompts, scores
from lab.hybridsd import equations as eq
from lab.hybridsd.consistency import with_guidance_embedding
from lab.hybridsd.distillation import distil
from lab.hybridsd.sampling import Conditioning, fresh, trajectory
from lab.hybridsd.text import token_ids

HERE = Path(__file__).parent
SCENES = runpy.run_path(str(HERE.parent / "hybridsd" / "make.py"))  # its loop, its tokenizer, its hashes
trained, follow = SCENES["trained"], SCENES["follow"]
SEED, BATCH, PICTURES, REBUILT = 0, 32, 12_000, 4_000
STEPS = {"reader": 600, "cloud": 4_000, "whole edge": 700, "edge": 1_200, "edge again": 2_000, "edge longer": 6_000}
N, K, GUIDANCE = 25, 8, 4.0  # the trajectory that the edge is made for
RULES, CUT = scores.Rules(unit=8, least=0, heads=0), (3, 4)  # of nine units three keep a quarter, one half
TIMES = 1000
LEARNED_SHIFT = 0.5  # of the cloud's training; its times are the noise's shares, whatever a sampler's shift
# SD3's shift, the root of the positions' ratio: 1 at 32 x 32 latents (pictures of 256), 8 x 8 here
SHIFT = 8 / 32
SCHEDULE = {
    "num_train_timesteps": TIMES,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": SHIFT,
}


def cloud_unet():
    return UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(40, 56), norm_num_groups=8, cross_attention_dim=48,
        attention_head_dim=4,  # heads, as in SD 1.x, whose config calls them so
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
    )  # fmt: skip


def text_encoder(words):
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=len(words), hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=words.model_max_length, projection_dim=48, attention_dropout=0.0,
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.eos_token_id,
    ))  # fmt: skip


@torch.no_grad()
def encoded(work, vae, images):
    """The latents (N, 4, 8, 8) of the embedded autoencoder, scaled; kept in `work`."""
    if not store.exists(work, "latents"):
        latents = torch.cat([vae.encode(x * 2 - 1).latent_dist.mode() for x in images.split(250)])
        store.save(work, "latents", {"latents": latents * vae.config.scaling_factor})
    return store.load(work, "latents")["latents"]


def train_reader(work, images, labels, rebuilt):
    """The reader, on pictures and on what the autoencoder makes of some, with noise and moved by up to a pixel.

    It begins as that of the scenes, which knows shapes: from drawn weights it had not one after 250 steps.
    """
    reader, layers = prompts.Reader(LABELS), prompts.Reader.trained().state_dict()
    reader.load_state_dict({name: x for name, x in layers.items() if "linear" not in name}, strict=False)

    def terms(batch):
        x, y = batch
        x = shifted(x, 1) + 0.06 * torch.rand(len(x), 1, 1, 1) * torch.randn_like(x)
        return {name: F.cross_entropy(a, y[:, i]) for i, (name, a) in enumerate(reader.parts(x).items())}

    data = TensorDataset(torch.cat([images[REBUILT:], rebuilt]), torch.cat([labels[REBUILT:], labels[:REBUILT]]))
    trained("reader", {"reader": reader}, terms, shuffled(data, 64), 3e-3, work, STEPS["reader"])
    return reader.eval()


def train_cloud(work, latents, tokens, empty, words):
    state = {"unet": cloud_unet(), "text": text_encoder(words)}
    average = torch.nn.ModuleDict(copy.deepcopy(state))

    def terms(batch):
        x, ids = batch
        ids = torch.where(torch.rand(len(ids), 1) < 0.1, empty, ids)  # guidance needs both
        sigma, noise = eq.shifted_share(torch.rand(len(x), 1, 1, 1), LEARNED_SHIFT), torch.randn_like(x)
        text_emb = state["text"](ids).last_hidden_state
        pred = state["unet"](eq.mixed(x, noise, sigma), TIMES * sigma.flatten(), text_emb).sample
        return {"flow": F.mse_loss(pred, eq.flow(x, noise))}

    trained("cloud", state, terms, shuffled(TensorDataset(latents, tokens), BATCH), 1e-3, work, STEPS["cloud"], average)
    return average["unet"].eval(), average["text"].eval()


def taught(folder, edge, cloud, text_emb, data, steps):
    """A running mean of an edge U-Net that learns from the cloud, the steps after the hand-off far oftener."""
    sigma = torch.arange(TIMES) / TIMES
    often = SHIFT / (SHIFT + (1 - SHIFT) * sigma) ** 2  # as often as the shifted sampler comes by
    boundary = eq.shifted_share(torch.tensor(1 - K / N), SHIFT)
    often = torch.where(sigma > boundary, 0.2 * often, often)
    average = copy.deepcopy(edge)

    def falling(adam):
        warm = torch.optim.lr_scheduler.LinearLR(adam, 0.01, total_iters=50)
        fall = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        return torch.optim.lr_scheduler.ChainedScheduler([warm, fall], adam)

    options = {"steps": steps, "lr": 1e-3, "schedule": falling, "average": average, "flow": True, "often": often}
    run = {"checkpoint": folder, "run_id": f"{folder.name} {SEED}", "progress": False}
    for step in distil(cloud, edge.train(), sigma, text_emb, shuffled(data, BATCH), **options, **run):
        follow({"edge": average}, {"edge": edge}, step.index)
        if step.index % 50 == 49:
            print(folder.name, step.index + 1, {k: round(v, 4) for k, v in step.terms.items()}, flush=True)
    return average.eval()


def embedding(text, tokens):
    """A function of token ids (N, T) -> text embeddings; one in ten is the empty prompt's, the last of the tokens."""

    @torch.no_grad()
    def text_emb(ids):
        return text(torch.where(torch.rand(len(ids), 1) < 0.1, tokens[-1:], ids)).last_hidden_state

    return text_emb


def train_edge(work, cloud, text, latents, tokens):
    """The edge U-Net: no inner stage and no middle, taught; then what its scores say matters least is cut, and taught.

    The scores (11) are of the latents that it ends in from the cloud's hand-off, not from noise: its own task.
    """

    text_emb, data = embedding(text, tokens), TensorDataset(latents, tokens[:-1])
    whole = taught(work / "whole", blocks.without_blocks(cloud), cloud, text_emb, data, STEPS["whole edge"])
    if not store.exists(work, "scores"):
        found = scores.significance_scores(whole, finishing(cloud, text, tokens), rules=RULES, progress=False)
        store.save(work, "scores", {"scores": found})
    found = store.load(work, "scores")["scores"]
    ratios = scores.keep_ratios(found, *CUT, RULES)
    print("scores", json.dumps({name: [round(found[name], 2), ratios[name]] for name in found}), flush=True)
    edge = scores.pruned(whole, ratios, RULES)
    for name in (
        "edge",
        "edge again",
        "edge longer",
    ):  # the rate rises and falls anew: 7 and then 6 points were missing
        edge = taught(work / name, edge, cloud, text_emb, data, STEPS[name])
    return unguided(edge), found


def longer(work, latents, captions):
    """Teach the kept edge once more, by the kept cloud, on latents (N, 4, 8, 8) of the captions; the last is empty."""
    kept, name = bound.embedded(), "edge longer"
    (cloud, edge), text, words = kept.unets, kept.text.encoders[0], kept.text.tokenizers[0]
    tokens = token_ids(captions, words, text)
    with seeded(SEED):
        data = TensorDataset(latents, tokens[:-1])
        edge = taught(work / name, edge, cloud, embedding(text, tokens), data, STEPS[name])
    edge.half().save_pretrained(HERE / "edge")
    SCENES["finish"](HERE, bound.reader())


@torch.no_grad()
def unguided(edge):
    """An edge that takes its guidance as said, and makes nothing of it: it is asked once a step, with the prompt.

    After the hand-off guidance moves little in the cloud, and doubles what is wrong in the edge.
    """
    told = with_guidance_embedding(edge, 8).eval()
    told.time_embedding.cond_proj.weight.zero_()
    return told


def finishing(cloud, text, tokens, count=50):
    """A function (U-Net, seed) -> the latents that it ends in from what the cloud hands over of `count` prompts."""
    with torch.no_grad():
        embedded = [text(ids).last_hidden_state for ids in (tokens[:count], tokens[-1:].expand(count, -1))]
    cond, scheduler = Conditioning(*embedded, GUIDANCE), DPMSolverMultistepScheduler(**SCHEDULE)

    def sample(edge, seed):
        noise = torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
        *_, last = trajectory([cloud, edge], fresh(scheduler, N), noise, cond, [K, N - K])
        return last

    return sample


def keep(folder, words, text, vae, cloud, edge, reader):
    """A diffusers folder in half precision without its autoencoder (that of `data/hybridsd`), and its hashes."""
    parts = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    whole = StableDiffusionPipeline(vae, text, words, cloud, DPMSolverMultistepScheduler(**SCHEDULE), **parts)
    whole.to(dtype=torch.float16).save_pretrained(folder)
    shutil.rmtree(folder / "vae")
    edge.half().save_pretrained(folder / "edge")
    SCENES["finish"](folder, reader)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=HERE.parents[1] / "build" / "bound", help="what a kill leaves")
    parser.add_argument(
        "--only", choices=("reader", "cloud", "edge"), help="train this alone; a start without it goes on"
    )
    options = parser.parse_args()
    work = options.work
    vae = prompts.embedded().vae
    with seeded(SEED):
        shown = bound.learned(PICTURES)
        images, labels = bound.rendered(shown)
        latents = encoded(work, vae, images)
        if options.only not in ("cloud", "edge"):
            rebuilt = bound.rebuilt(images[:REBUILT], vae)
            reader = train_reader(work, images, labels, rebuilt)
        if options.only == "reader":
            return
    if options.only == "edge":
        longer(work, latents, [*(pair.caption for pair in shown), ""])
        return
    with seeded(SEED):
        words = SCENES["tokenizer"](work / "tokenizer", [pair.caption for pair in bound.held_out() + bound.learned()])
        ids = token_ids([*(pair.caption for pair in shown), ""], words, None)
        cloud, text = train_cloud(work, latents, ids[:-1], ids[-1:], words)
        if options.only == "cloud":
            return
    with seeded(SEED):
        edge, found = train_edge(work, cloud, text, latents, ids)
    store.write(HERE / "scores.json", (json.dumps(found, indent=1) + "\n").encode())
    keep(HERE, words, text, vae, cloud, edge, reader)


if __name__ == "__main__":
    main()
