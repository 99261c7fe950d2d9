"""Train the diffusion models that `lab.HybridSD()` starts from: `python data/hybridsd/make.py`, an hour on two cores.

Genuine diffusers and transformers components in one folder that a plain `StableDiffusionPipeline` loads: tokenizer,
text encoder, KL autoencoder, cloud U-Net, edge U-Net, tiny decoder; beside them the checker that reads pictures back.
A second start goes on where a kill left it (`--work FOLDER`); `--device cuda` takes minutes.
"""

import argparse
import copy
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lab.core.batches import shifted, shuffled
from lab.core.descent import Stage, descend, seeded
from lab.hybridsd import prompts
from lab.hybridsd.components import token_ids

SEED, BATCH, PICTURES = 0, 64, 24_000
STEPS = {"reader": 1_500, "vae": 1_500, "cloud": 1_700}
HERE = Path(__file__).parent
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def trained(name, keeps, terms, batches, lr, work, steps, average=None):
    """Minimise `terms` with AdamW and a cosine to zero; `average` is moved after each step; resumed from `work`."""
    parameters = [p for part in keeps.values() for p in part.parameters()]
    adam = torch.optim.AdamW(parameters, lr, weight_decay=1e-2)
    warm = torch.optim.lr_scheduler.LinearLR(adam, 0.01, total_iters=100)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    schedule = torch.optim.lr_scheduler.ChainedScheduler([warm, fall], adam)
    averages = {} if average is None else {"average": average}
    stage = Stage(work, name, f"{name} {SEED} {steps}", every=200, **keeps, **averages, adam=adam, schedule=schedule)
    for step in descend(terms, batches, adam, stage, steps=steps, schedule=schedule, progress=False):
        if average is not None:
            moved(average, keeps, step.index)
        if step.index % 50 == 49:
            print(name, step.index + 1, {k: round(v, 4) for k, v in step.terms.items()}, flush=True)


@torch.no_grad()
def moved(average, keeps, index, most=0.995):
    """The running average of the weights, quick at first."""
    rate = min(most, (1 + index) / (10 + index))
    for part, kept in zip(average.values(), keeps.values(), strict=True):
        for mean, now in zip(part.parameters(), kept.parameters(), strict=True):
            mean.lerp_(now, 1 - rate)


def tokenizer(folder):
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
    learner.train_from_iterator([scene.caption for scene in prompts.held_out() + prompts.learned()], trainer)
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
        sample_size=8, layers_per_block=2, block_out_channels=(48, 64, 96), norm_num_groups=16, cross_attention_dim=64,
        attention_head_dim=4,  # heads, as in SD 1.x, whose config calls them so
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def kl_vae():
    return AutoencoderKL(
        sample_size=32, block_out_channels=(16, 32, 48), layers_per_block=1, latent_channels=4, norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, mid_block_add_attention=False,
    )  # fmt: skip


def train_reader(work, pictures, labels, device):
    """The reader, on pictures with noise of any strength up to 0.06, moved by up to a pixel."""
    reader = prompts.Reader().to(device)

    def terms(batch):
        x, y = (part.to(device) for part in batch)
        x = shifted(x, 1) + 0.06 * torch.rand(len(x), 1, 1, 1, device=device) * torch.randn_like(x)
        return {name: F.cross_entropy(a, y[:, i]) for i, (name, a) in enumerate(reader.parts(x).items())}

    batches = shuffled(TensorDataset(pictures, labels), BATCH)
    trained("reader", {"reader": reader}, terms, batches, 5e-3, work, STEPS["reader"])
    return reader.eval()


def train_vae(work, pictures, device):
    vae = kl_vae().to(device)

    def terms(batch):
        x = batch[0].to(device) * 2 - 1
        with torch.autocast(x.device.type, torch.bfloat16):  # twice as fast on the processors that know it
            found = vae.encode(x).latent_dist
            decoded = vae.decode(found.sample()).sample.float()
        return {
            "picture": F.mse_loss(decoded, x) + 0.2 * F.l1_loss(decoded, x),
            "kl": 1e-5 * found.kl().float().mean() / 256,
        }

    trained("vae", {"vae": vae}, terms, shuffled(TensorDataset(pictures), BATCH), 2e-3, work, STEPS["vae"])
    return vae.eval()


@torch.no_grad()
def encoded(vae, pictures, device):
    """The latents (N, 4, 8, 8), of variance one, and the factor that made them so."""
    parts = [vae.encode(x.to(device) * 2 - 1).latent_dist.mode() for x in pictures.split(256)]
    latents = torch.cat(parts)
    factor = float(1 / latents.std())
    return latents * factor, factor


def train_cloud(work, latents, tokens, empty, words, device):
    keeps = {"unet": cloud_unet().to(device), "text": text_encoder(words).to(device)}
    average = torch.nn.ModuleDict(copy.deepcopy(keeps))
    alphas = DPMSolverMultistepScheduler(**SCHEDULE).alphas_cumprod.to(device)

    def terms(batch):
        x, ids = (part.to(device) for part in batch)
        ids = torch.where(torch.rand(len(ids), 1, device=device) < 0.1, empty.to(device), ids)  # guidance needs both
        t, noise = torch.randint(1000, (len(x),), device=device), torch.randn_like(x)
        a = alphas[t].view(-1, 1, 1, 1)
        told = keeps["text"](ids).last_hidden_state
        return {"noise": F.mse_loss(keeps["unet"](a.sqrt() * x + (1 - a).sqrt() * noise, t, told).sample, noise)}

    batches = shuffled(TensorDataset(latents.cpu(), tokens), BATCH)
    trained("cloud", keeps, terms, batches, 1e-3, work, STEPS["cloud"], average)
    return average["unet"].eval(), average["text"].eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=HERE / "work")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    with seeded(SEED):
        scenes = prompts.learned(PICTURES)
        pictures, labels = prompts.drawn(scenes)
        if options.only == "reader":
            train_reader(options.work, pictures, labels, options.device)
            return
        vae = train_vae(options.work, pictures, options.device)
        latents, factor = encoded(vae, pictures, options.device)
        print("factor", factor, flush=True)
        words = tokenizer(options.work / "tokenizer")
        ids = token_ids([scene.caption for scene in scenes], words)
        train_cloud(options.work, latents, ids, token_ids([""], words), words, options.device)


if __name__ == "__main__":
    main()
