"""FoldGPT's search over both moves beside its rivals, all within one budget of bytes, cured on the same batches.

    python benchmarks/foldgpt_budget.py --json data/foldgpt/budget.json [--quick] [--seeds 10,11] [--rivals SLEB]

The lab's small Llama, held-out topics. At most 64 % of its bytes may stay. What only removes (ShortGPT, SLEB,
Shortened LLaMA's PPL and Taylor) must then remove five of twelve blocks; width pruning in Minitron's way takes two of
four heads and as many neurons as it must, by the activations that they give on the calibration batches. Every row
starts from the same model, ranks on sixteen batches of its seed, begins its cure from the seed anew, and is cured for
as many steps, on the same batches, at the same rate. SLEB cannot use what five whole blocks leave of the budget, 3.4 %
of the bytes; `FoldGPT at SLEB's size` does without them too. `by operations` is FoldGPT's search where time counts: as
many operations of blocks as SLEB leaves, which sharing cannot save, so that it only removes. Settings were chosen on
seed 0, scored on every twentieth paragraph of the topics to learn from. A cell takes half a minute of a core, a search
a minute and a half.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import contest
import torch
from torch import Tensor, nn

import lab
from lab.core import cost
from lab.core.batch import Example
from lab.core.modeling_folded import blocks
from lab.core.running import running
from lab.core.task import Task
from lab.foldgpt.recipe import CALIBRATION
from lab.foldgpt.rehearsal import validate_suits
from lab.foldgpt.sharing import inputs_seen

BATCH, BUDGET, HEADS = 8, 0.36, 2  # windows a batch, share of the bytes that must go, heads of four that stay in width
SEEDS = (30, 31, 32, 33, 34)  # the search was changed after seeds 10 to 24 had been seen
OURS = lab.FoldGPT(ranking="bytes", removal=BUDGET)
REMOVED: dict[str, Any] = {"removal": 5 / 12, "sharing": 0.0}  # 39.5 % of the bytes; four of twelve blocks are 31.6 %
RECIPES = {
    "FoldGPT": OURS,
    "SLEB": replace(OURS, ranking="leave-one-out", **REMOVED),
    "FoldGPT at SLEB's size": replace(OURS, removal=0.394),
    "ShortGPT": replace(OURS, ranking="influence", **REMOVED),
    "Shortened LLaMA, PPL": replace(OURS, ranking="perplexity", **REMOVED),
    "Shortened LLaMA, Taylor": replace(OURS, ranking="taylor", **REMOVED),
    "FoldGPT by operations": replace(OURS, ranking="operations", removal=5 / 12),
}


def budget(is_quick: bool, device: str = "cpu") -> contest.Contest:
    """All rivals at 36 % fewer bytes."""
    task = contest.placed(replace(lab.tasks.prose(batch_size=BATCH), text=()), device)
    recipes = {name: replace(recipe, cure_steps=3) if is_quick else recipe for name, recipe in RECIPES.items()}
    rivals = {name: of_recipe(task, recipe) for name, recipe in recipes.items()}
    rivals["width, as Minitron"] = of_width(task, recipes["FoldGPT"])
    settings = {
        "recipes": {name: repr(recipe) for name, recipe in recipes.items()}, "batch": BATCH, "budget": BUDGET,
        "heads": HEADS, "search": "fewest blocks, sixteen batches", "start": contest.fingerprint(task.model),
    }  # fmt: skip
    return contest.Contest(
        name="foldgpt-budget", seeds=SEEDS, rivals=rivals, settings=settings,
        figure="perplexity, times the whole model's", device=device,
    )  # fmt: skip


def of_recipe(task: Task, recipe: lab.FoldGPT) -> contest.Rival:
    """A whole run of the recipe."""

    def made(_: Any, seed: int, folder: Path) -> tuple[nn.Module, dict[str, float]]:
        outcome = recipe.run(task, seed=seed, progress=False)
        print(seed, outcome.report.notes[0], "rank", outcome.fold.rank, flush=True)
        rows: dict[str, Any] = {name: outcome.report[name] for name in ("perplexity", "perplexity, not cured")}
        full = rows["perplexity"].before
        return outcome.model, figures(task, outcome.model, *(row.after / full for row in rows.values()))

    return made


def of_width(task: Task, recipe: lab.FoldGPT) -> contest.Rival:
    """The same cure for a model of all blocks, each of them narrower."""

    def made(_: Any, seed: int, folder: Path) -> tuple[nn.Module, dict[str, float]]:
        with running(recipe, task, seed, None, None, False, validate_suits, several=True) as run:
            student = narrowed(run.model, tuple(islice(iter(task.batches), CALIBRATION)))
            raw = task.measure(student)
            torch.manual_seed(seed)  # as every recipe begins its cure
            recipe._cure(run, student)
            return student, figures(task, student, task.measure(student) / run.before, raw / run.before)

    return made


def figures(task: Task, model: nn.Module, ratio: float, raw: float) -> dict[str, float]:
    """What is compared, and what it costs: shares of the whole model's bytes and multiply-adds."""
    return {
        "perplexity, times the whole model's": ratio,
        "not cured": raw,
        "bytes": cost.bytes_stored(model) / cost.bytes_stored(task.model),
        "operations": cost.macs(model, task.example) / cost.macs(task.model, task.example),
    }


# -- width ------------------------------------------------------------------------------------------------------------


def narrowed(model: Any, batches: Sequence[Example]) -> Any:
    """A Llama with HEADS heads and as many neurons as the budget leaves, those that give most on the batches."""
    config, size = model.config, model.config.head_dim
    seen = inputs_seen(model, range(len(blocks(model))), batches)  # what a layer's last matrices read: the activations
    whole = cost.parameters(model)
    heads_gone = (config.num_attention_heads - HEADS) * 4 * size * config.hidden_size * len(blocks(model))
    a_neuron = 3 * config.hidden_size * len(blocks(model))
    neurons = config.intermediate_size - -int(-(BUDGET * whole - heads_gone) // a_neuron)
    smaller = type(config).from_dict({**config.to_dict(), "intermediate_size": neurons, "head_dim": size})
    smaller.num_attention_heads = smaller.num_key_value_heads = HEADS  # afterwards: they need not divide the channels
    made = type(model)(smaller)
    state = model.state_dict()
    for k, _ in enumerate(blocks(model)):
        heads = seen[k]["self_attn.o_proj"].diagonal().view(-1, size).sum(1).topk(HEADS).indices.sort().values
        rows = (heads[:, None] * size + torch.arange(size)).flatten()
        cut = {"self_attn": rows, "mlp": seen[k]["mlp.down_proj"].diagonal().topk(neurons).indices.sort().values}
        for name in [name for name in state if f"layers.{k}." in name and "proj" in name]:
            state[name] = taken(name, state[name], cut[name.split(".")[-3]])
    made.load_state_dict(state)
    return made.eval()


def taken(name: str, matrix: Tensor, kept: Tensor) -> Tensor:
    """The rows of a matrix that are kept, or the columns of one that reads what the others give."""
    return matrix[:, kept] if name.split(".")[-2] in ("o_proj", "down_proj") else matrix[kept]


CONTESTS: dict[str, Callable[[bool, str], contest.Contest]] = {"budget": budget}

if __name__ == "__main__":
    contest.main(CONTESTS, __doc__)
