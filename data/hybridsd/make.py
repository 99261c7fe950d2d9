"""Train the diffusion models that `lab.HybridSD()` starts from: `python data/hybridsd/make.py`, an hour on two cores.

Genuine diffusers and transformers components in one folder that a plain `StableDiffusionPipeline` loads: tokenizer,
text encoder, KL autoencoder, cloud U-Net, edge U-Net, tiny decoder; beside them the checker that reads pictures back.
A second start goes on where a kill left it (`--work FOLDER`); `--device cuda` takes minutes.
"""

import argparse
import copy
import hashlib
import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lab.core import store, tasks
from lab.core.data import scenes as drawing
from lab.core.data.batches import shifted, shuffled
from lab.core.training import Stage, descend, seeded
from lab.hybridsd import blocks, prompts
from lab.hybridsd import equations as eq
from lab.hybridsd.distillation import distil
from lab.hybridsd.text import token_ids

SEED, BATCH, PICTURES = 0, 64, 24_000
LATENTS = 64  # a batch of latents
STEPS = {"reader": 1_500, "vae": 1_500, "vae-shapes": 900, "cloud": 4_500, "edge": 1_500, "tiny": 1_500}
HERE = Path(__file__).parent
ASIDE = {"README.md", "SHA256SUMS", "make.py"}
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "prediction_type": "v_prediction",
}


def trained(name, state, terms, batches, lr, work, steps, average=None):
    """Minimise `terms` with AdamW and a cosine to zero; `average` is moved after each step; resumed from `work`."""
    parameters = [p for part in state.values() for p in part.parameters()]
    adam = torch.optim.AdamW(parameters, lr, weight_decay=1e-2)
    warm = torch.optim.lr_scheduler.LinearLR(adam, 0.01, total_iters=100)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    schedule = torch.optim.lr_scheduler.ChainedScheduler([warm, fall], adam)
    averages = {} if average is None else {"average": average}
    stage = Stage(work, name, f"{name} {SEED}", every=200, **state, **averages, adam=adam, schedule=schedule)
    for step in descend(terms, batches, adam, stage, steps=steps, schedule=schedule, progress=False):
        if average is not None:
            follow(average, state, step.index)
        if step.index % 50 == 49:
            print(name, step.index + 1, {k: round(v, 4) for k, v in step.terms.items()}, flush=True)


@torch.no_grad()
def follow(average, state, index, most=0.995):
    """The running average of the weights, quick at first."""
    rate = min(most, (1 + index) / (10 + index))
    for mean_part, part in zip(average.values(), state.values(), strict=True):
        for mean, weight in zip(mean_part.parameters(), part.parameters(), strict=True):
            mean.lerp_(weight, 1 - rate)


def tokenizer(folder, captions):
    """CLIP's byte-pair tokenizer, its merges learned from the captions until each word is one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(r" ", "removed"), pre_tokenizers.Split(",", "isolated")]
    )
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    words = sorted(letters) + sorted(f"{c}</w>" for c in letters) + ["".join(pair) for pair in merges]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    made = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=16)
    made.save_pretrained(folder)
    return made


def text_encoder(words):
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=words.model_max_length, projection_dim=64, attention_dropout=0.0,
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.eos_token_id,
    ))  # fmt: skip


def cloud_unet():
    return UNet2DConditionModel(
        sample_size=8, layers_per_block=2, block_out_channels=(48, 80, 80), norm_num_groups=16, cross_attention_dim=64,
        attention_head_dim=4,  # heads, as in SD 1.x, whose config calls them so
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def kl_vae():
    return AutoencoderKL(
        sample_size=32, block_out_channels=(16, 32, 48), layers_per_block=1, latent_channels=4, norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        mid_block_add_attention=False,
    )  # fmt: skip


def train_reader(work, images, labels, device):
    """The reader, on pictures with noise of any strength up to 0.06, moved by up to a pixel."""
    reader = prompts.Reader().to(device)

    def terms(batch):
        x, y = (part.to(device) for part in batch)
        x = shifted(x, 1) + 0.06 * torch.rand(len(x), 1, 1, 1, device=device) * torch.randn_like(x)
        return {name: F.cross_entropy(a, y[:, i]) for i, (name, a) in enumerate(reader.parts(x).items())}

    batches = shuffled(TensorDataset(images, labels), BATCH)
    trained("reader", {"reader": reader}, terms, batches, 5e-3, work, STEPS["reader"])
    return reader.eval()


def train_vae(work, images, things, device):
    """The autoencoder: first whole pictures, then with weight on the things and on what a network of shapes sees."""
    vae = kl_vae().to(device)
    eye = tasks.scenes().model.to(device).eval().requires_grad_(False)  # never the reader: that one only measures

    def seen(x):
        first = eye.layer1(eye.relu(eye.bn1(eye.conv1(x / 2))))
        second = eye.layer2(first)
        return [F.normalize(part, dim=1) for part in (first, second, eye.layer3(second))]

    def rebuilt(x):
        with torch.autocast(x.device.type, torch.bfloat16):  # twice as fast on the processors that know it
            latents = vae.encode(x).latent_dist
            return vae.decode(latents.sample()).sample.float(), 1e-5 * latents.kl().float().mean() / 256

    def picture_terms(batch):
        x = batch[0].to(device) * 2 - 1
        y, kl = rebuilt(x)
        return {"picture": F.mse_loss(y, x) + 0.2 * F.l1_loss(y, x), "kl": kl}

    def shape_terms(batch):
        x, inside = batch[0].to(device) * 2 - 1, batch[1].to(device)
        y, kl = rebuilt(x)
        weight = 1 + 8 * F.max_pool2d(inside.float(), 3, 1, 1)
        apart = sum((a - b).square().sum(1).mean() for a, b in zip(seen(y), seen(x), strict=True))
        return {"picture": (weight * (y - x).square()).mean(), "seen": 0.1 * apart, "kl": kl}

    batches = shuffled(TensorDataset(images, things), BATCH)
    trained("vae", {"vae": vae}, picture_terms, batches, 2e-3, work, STEPS["vae"])
    trained("vae-shapes", {"vae": vae}, shape_terms, batches, 2e-3, work, STEPS["vae-shapes"])
    return vae.eval()


@torch.no_grad()
def encoded(work, vae, images, device):
    """The latents (N, 4, 8, 8), of variance one, and the factor that made them so; kept in `work`."""
    if not store.exists(work, "latents"):
        latents = torch.cat([vae.encode(x.to(device) * 2 - 1).latent_dist.mode().cpu() for x in images.split(256)])
        store.save(work, "latents", {"latents": latents / latents.std(), "factor": float(1 / latents.std())})
    kept = store.load(work, "latents")
    return kept["latents"], kept["factor"]


def train_cloud(work, latents, tokens, empty, words, device):
    state = {"unet": cloud_unet().to(device), "text": text_encoder(words).to(device)}
    average = torch.nn.ModuleDict(copy.deepcopy(state))
    alphas = DPMSolverMultistepScheduler(**SCHEDULE).alphas_cumprod.to(device)

    def terms(batch):
        x, ids = (part.to(device) for part in batch)
        ids = torch.where(torch.rand(len(ids), 1, device=device) < 0.1, empty.to(device), ids)  # guidance needs both
        t, noise = torch.randint(1000, (len(x),), device=device), torch.randn_like(x)
        a = alphas[t].view(-1, 1, 1, 1)
        text_emb = state["text"](ids).last_hidden_state
        pred = state["unet"](a.sqrt() * x + (1 - a).sqrt() * noise, t, text_emb).sample
        return {"velocity": F.mse_loss(pred, eq.velocity(x, noise, a))}

    batches = shuffled(TensorDataset(latents.cpu(), tokens), LATENTS)
    trained("cloud", state, terms, batches, 1e-3, work, STEPS["cloud"], average)
    return average["unet"].eval(), average["text"].eval()


def shrunk(cloud):
    """The edge U-Net as it starts: blocks left out, every residual block a quarter as wide inside, 3 of 4 heads."""
    small = blocks.without_blocks(cloud)
    widths = [blocks.kept_width(b.conv1.out_channels, 0.25, unit=16, least=0) for b in blocks.residual_blocks(small)]
    return blocks.narrowed(small, widths, [3] * len(blocks.attentions(small)))


def train_edge(work, cloud, text, latents, tokens, device):
    """The edge U-Net under the cloud's three losses, the cloud frozen."""
    edge = shrunk(cloud).to(device).train()
    average = copy.deepcopy(edge)
    alphas = DPMSolverMultistepScheduler(**SCHEDULE).alphas_cumprod.to(device)
    empty, gone = tokens[-1:], 0.1

    @torch.no_grad()
    def text_emb(ids):
        ids = torch.where(torch.rand(len(ids), 1) < gone, empty, ids)
        return text(ids.to(device)).last_hidden_state

    def falling(adam):
        warm = torch.optim.lr_scheduler.LinearLR(adam, 0.01, total_iters=50)
        fall = torch.optim.lr_scheduler.CosineAnnealingLR(adam, STEPS["edge"])
        return torch.optim.lr_scheduler.ChainedScheduler([warm, fall], adam)

    batches = shuffled(TensorDataset(latents, tokens[:-1]), LATENTS)
    options = {"steps": STEPS["edge"], "lr": 1e-3, "schedule": falling, "average": average, "velocity": True}
    run = {"checkpoint": work, "run_id": f"edge {SEED}"}
    for step in distil(cloud, edge, alphas, text_emb, batches, **options, **run, progress=False):
        follow({"edge": average}, {"edge": edge}, step.index)
        if step.index % 50 == 49:
            print("edge", step.index + 1, {k: round(v, 4) for k, v in step.terms.items()}, flush=True)
    return average.eval()


def train_tiny(work, vae, latents, things, factor, device):
    """The tiny decoder learns what the large one makes of a latent, things first."""
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8), num_encoder_blocks=(1, 1, 1), decoder_block_out_channels=(24, 24, 24),
        num_decoder_blocks=(1, 1, 1), latent_channels=4, upsample_fn="nearest",
    ).to(device)  # fmt: skip

    def terms(batch):
        z, inside = (part.to(device) for part in batch)
        with torch.no_grad():
            target = vae.decode(z / factor).sample
        weight = 1 + 8 * F.max_pool2d(inside.float(), 3, 1, 1)
        with torch.autocast(z.device.type, torch.bfloat16):
            output = tiny.decode(z).sample
        return {"teacher": (weight * (output.float() - target).square()).mean()}

    data = TensorDataset(latents, things)
    trained("tiny", {"tiny": tiny}, terms, shuffled(data, LATENTS), 2e-3, work, STEPS["tiny"])
    return tiny.eval()


def keep(folder, words, text, vae, cloud, edge, tiny, reader):
    """One diffusers folder in half precision, its hashes, and what the reader finds on pictures and reconstructions."""
    scheduler = DPMSolverMultistepScheduler(**SCHEDULE)
    whole = StableDiffusionPipeline(
        vae, text, words, cloud, scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    whole.to(dtype=torch.float16).save_pretrained(folder)
    text.float().save_pretrained(folder / "text_encoder")  # transformers loads the precision it finds, diffusers not
    edge.half().save_pretrained(folder / "edge")
    tiny.half().save_pretrained(folder / "tiny")
    finish(folder, reader)


def finish(folder, reader):
    """The reader in half precision beside the models, and SHA256SUMS of all that a folder keeps."""
    state = {name: x.half() if x.is_floating_point() else x for name, x in reader.state_dict().items()}
    store.write(folder / "reader.safetensors", save(state))
    kept = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in ASIDE)
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}" for path in kept]
    store.write(folder / "SHA256SUMS", ("\n".join(lines) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=HERE.parents[1] / "build" / "hybridsd", help="what a kill leaves")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=("reader", "tiny"), help="train this alone; a start without it goes on")
    options = parser.parse_args()
    work, device = options.work, options.device
    with seeded(SEED):
        scenes = prompts.learned(PICTURES)
        images, labels = prompts.rendered(scenes)
        reader = train_reader(work, images, labels, device)
        if options.only == "reader":
            return
        things = drawing.draw(scenes)[1].any(1, keepdim=True)
        vae = train_vae(work, images, things, device)
        latents, factor = encoded(work, vae, images, device)
        vae.register_to_config(scaling_factor=factor)
        words = tokenizer(work / "tokenizer", [scene.caption for scene in prompts.held_out() + prompts.learned()])
        ids = token_ids([*(scene.caption for scene in scenes), ""], words, None)
        if options.only != "tiny":
            cloud, text = train_cloud(work, latents, ids[:-1], ids[-1:], words, device)
            edge = train_edge(work, cloud, text, latents, ids, device)
    with seeded(SEED):  # apart from the others, so that another core can take it
        tiny = train_tiny(work, vae, latents, things, factor, device)
    if options.only == "tiny":
        return
    keep(HERE, words, text, vae, cloud, edge, tiny, reader)


if __name__ == "__main__":
    main()
