"""Chains, measured: pruned, then quantised, against each alone, against onnxruntime's int8, and killed on the way.

    python benchmarks/chains.py [--quick] [--part speed,bytes,kills] [--json data/chains/chains.json]

`speed`: GAL, then SparseByteNN in blocks of 4 x 4, then int8 by DQSS, one thread, interleaved: the chain's engine
beside onnxruntime on the dense network in int8 (the same recipe's file with its exact kernels and with its own choice,
which overflows where the processor has no VNNI, and onnxruntime's own static quantisation) and in fp32. A thin
MobileNet-v1 on Fashion-MNIST, with the accuracy of both; then the whole one at 224 x 224 with weights of chance, which
has lost the same share of each layer's channels and of its blocks, for the time alone.

`bytes`: what pruning in blocks of 4 x 4 and integers give together, against quantisation alone and pruning alone, each
at the bytes that quantisation alone has at 6, 5, 4 and 3 bits, norms folded. Pruning alone, of 95 % at most, does not
reach those of 4. Every rival learns for as many steps from the same batches, and ranges are read in the same way. A
contest of `contest.py`: cells are kept in `runs/`, and resumed.

`kills`: a chain of three stages is killed (SIGKILL) at a random moment, and resumed; its report and its weights are
held to those of the unbroken run.
"""

import argparse
import bisect
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import contest
import torch
from engines import interleaved, ratio
from engines import onnxruntime as as_it_likes
from sparsebytenn_int8 import onnxruntime_int8, settle
from torch import nn

import lab
from lab.core.graph import surgery
from lab.core.machine import machine
from lab.core.onnx import export
from lab.core.onnx.runtime import Deployed
from lab.core.quantisation.bn_folding import fold_batch_norms
from lab.core.quantisation.qparams import set_int_repr
from lab.core.task import Task
from lab.core.training import seeded
from lab.sparsebytenn.rearrange import survey

PARTS = ("speed", "bytes", "kills")
BATCH = 64
GAL = lab.GAL(macs_ratio=2.6, steps=900, finetune_steps=600, finetune_lr=0.01)
BLOCKS = lab.SparseByteNN(block=(4, 4), sparsity=0.7, steps=3000, lr=0.01, regroup_every=50)
INT8 = lab.DQSS(
    weight_bits=8, activation_bits=8, placement="full", scales="channel", algorithm="uniform",
    candidates=("max", "p99.99", "p99.9", "mse"),
)  # fmt: skip
FULL = 224


def task() -> Task:
    """Fashion-MNIST and the thin MobileNet-v1 of `data/fashion`."""
    return lab.tasks.fashion(batch_size=BATCH, net="mobilenet_v1")


def stages(quick: bool) -> tuple:
    """The three stages, shortened for --quick."""
    if not quick:
        return GAL, BLOCKS, INT8
    return replace(GAL, steps=120, finetune_steps=20), replace(BLOCKS, steps=20, regroup_every=4), INT8


# -- speed -------------------------------------------------------------------------------------------------------------


def speed(options: argparse.Namespace) -> dict:
    """Accuracy of the chain and of the dense network in int8, seed by seed, and the times of the first seed's."""
    ground, rounds, seeds = task(), 10 if options.quick else 60, (10,) if options.quick else (10, 11, 12)
    pairs = [both(ground, seed, options) for seed in seeds]
    scores = [(ground.measure(dense.model), ground.measure(chain.model)) for chain, dense in pairs]
    chain, dense = pairs[0]
    thin = {
        "seeds": seeds, "accuracy, dense in int8": [a for a, _ in scores], "accuracy, chain": [b for _, b in scores],
        **times(chain, dense, ground.model, ground.example, rounds),
    }  # fmt: skip
    whole = times(*at_full_size(chain), rounds // 2)
    return {"thin": thin, "224 x 224": whole}


def both(ground: Task, seed: int, options: argparse.Namespace) -> tuple:
    """The chain, trained once and then found again, and the dense network in int8."""
    folder = options.runs / f"chains-speed{'-quick' if options.quick else ''}" / str(seed)
    chain = lab.Chain(*stages(options.quick)).run(ground, seed=seed, progress=False, checkpoint=folder)
    print(chain.report, flush=True)
    return chain, INT8.run(ground, seed=seed, progress=False)


def times(
    sparse: object, dense: lab.dqss.recipe.DQSSOutcome, net: nn.Module, x: torch.Tensor, rounds: int
) -> dict[str, float]:
    """Median ms of each contender, and how many times as fast as the others the chain's engine is."""
    made = lab.engine(sparse, strict=True)
    print(made.profile(5).to_string())
    image = [x[0].numpy()]
    with tempfile.TemporaryDirectory() as folder:
        int8, fp32 = dense.export(Path(folder) / "int8.onnx"), export.onnx(net, Path(folder) / "fp32.onnx", x)
        calls = {
            "chain": partial(made._run, image),
            "engine, dense int8": partial(lab.engine(dense, strict=True)._run, image),
            "onnxruntime, dense int8, exact": partial(Deployed(int8).forward, x),
            "onnxruntime, dense int8": as_it_likes(int8, x, 1),
            "onnxruntime, its own int8": onnxruntime_int8(net, x),
            "onnxruntime, dense fp32": as_it_likes(fp32, x, 1),
        }
    seconds = interleaved(calls, rounds)
    figures = {f"ms, {name}": 1000 * statistics.median(some) for name, some in seconds.items()}
    others = {name: some for name, some in seconds.items() if name.startswith("onnxruntime")}
    figures |= {f"over {name}": ratio(some, seconds["chain"]) for name, some in others.items()}
    return figures


def at_full_size(chain: object) -> tuple:
    """The whole MobileNet-v1 cut and zeroed as the chain's network is, in int8; the dense one in int8, and in fp32."""
    with seeded(0):
        net = lab.nets.mobilenet_v1().eval()
        settle(net)
        x = torch.randn(8, 3, FULL, FULL)
    ground = Task(model=net, batches=[x], score=lambda net: 0.0, name="noise at 224 x 224")
    recipe = replace(INT8, calibration=8, candidates=("max",))
    cut = replace(ground, model=zeroed(smaller(net, x[:1], chain), chain))
    return recipe.run(cut, progress=False), recipe.run(ground, progress=False), net, x[:1]


def smaller(net: nn.Module, x: torch.Tensor, chain: object) -> nn.Module:
    """The network with the share of each layer's channels that the chain's first stage has left."""
    plan, shares = surgery.Plan(), kept_channels(chain)
    for name, share in shares.items():
        rows = len(net.get_parameter(f"{name}.weight"))
        plan.channels[name] = tuple(range(max(4, round(share * rows / 4) * 4)))
    return surgery.remove(net, plan, x)


def kept_channels(chain: object) -> dict[str, float]:
    """Of each layer whose channels GAL has cut, the share that is left."""
    first, before = chain.outcomes[0], task().model
    names = [name for name in first.plan.channels if isinstance(before.get_submodule(name), nn.Conv2d)]
    rows = {name: len(before.get_parameter(f"{name}.weight")) for name in names}
    return {name: len(first.plan.channels[name]) / count for name, count in rows.items()}


def zeroed(net: nn.Module, chain: object) -> nn.Module:
    """The network, in place, with as large a share of each layer's blocks of 4 x 4 at 0 as the second stage left."""
    g = torch.Generator().manual_seed(1)
    for name, mask in chain.outcomes[1].masks.items():
        weight = net.get_parameter(f"{name}.weight")
        grid = torch.rand(-(-len(weight) // 4), -(-weight.shape[1] // 4), generator=g) < mask.float().mean()
        keep = grid.repeat_interleave(4, 0)[: len(weight)].repeat_interleave(4, 1)[:, : weight.shape[1]]
        weight.data *= keep[:, :, None, None]
    return net


# -- bytes -------------------------------------------------------------------------------------------------------------

STEPS = 80
PRUNE = lab.SparseByteNN(block=(4, 4), sparsity=0.0, steps=STEPS, lr=0.003, ramp=0.5, regroup_every=8)
ROUND = lab.DQSS(
    placement="full", scales="channel", algorithm="uniform", activation_bits=8, weight_bits=8,
    candidates=("max", "p99.99", "p99.9", "mse"),
)  # fmt: skip
BITS = (6, 5, 4, 3)


def at_equal_bytes(quick: bool, device: str = "cpu") -> contest.Contest:
    """A budget is the bits of quantisation alone; the shares of the others are those of its bytes."""
    prune = replace(PRUNE, steps=8, regroup_every=2) if quick else PRUNE
    rivals = {
        "prune, then 8 bits": partial(_cell, prune, 8),
        "prune, then 4 bits": partial(_cell, prune, 4),
        "quantise alone": partial(_cell, prune, None),
        "prune alone": partial(_cell, prune, 32),
        "prune alone, single weights": partial(_cell, replace(prune, block=1), 32),
    }
    return contest.Contest(
        name="chains-bytes-quick" if quick else "chains-bytes",
        rivals=rivals,
        settings={
            "prune": repr(prune),
            "round": repr(ROUND),
            "batch": BATCH,
            "net": "mobilenet_v1",
            "rivals": [*rivals],
        },
        figure="accuracy_drop",
        budgets=BITS,
        seeds=(10, 11, 12),
        only={
            "prune, then 4 bits": (3,),
            **dict.fromkeys(("prune alone", "prune alone, single weights"), (6, 5)),
        },
        device=device,
    )


def _cell(
    prune: lab.SparseByteNN, bits: int | None, budget: int, seed: int, folder: Path
) -> tuple[nn.Module, dict[str, float]]:
    """A network at the budget's bytes: its share of blocks gone, its weights in so many bits.

    None: no block is gone, and the bits are the budget's. 32: weights stay floats, norms are folded into them.
    """
    ground = task()
    room = size_at(ground, prune, 0.0, budget)
    share = 0.0 if bits is None else share_for(ground, prune, bits, room)
    outcome = replace(prune, sparsity=share).run(ground, seed=seed, progress=False)
    model = fold_batch_norms(outcome.model, ground.example)
    if bits != 32:
        recipe, pruned = replace(ROUND, weight_bits=bits or budget), replace(ground, model=outcome.model)
        model = recipe.run(pruned, seed=seed, progress=False).model
    lost = outcome.report[ground.metric].before - ground.measure(model)
    return model, {"accuracy_drop": lost, "bytes": lab.cost.bytes_stored(model), "sparsity": 100 * share}


def size_at(ground: Task, prune: lab.SparseByteNN, share: float, bits: int) -> int:
    """Bytes of the network, norms folded, with this share of its blocks gone and its weights in so many bits."""
    model = fold_batch_norms(ground.model, ground.example)
    prunable = survey(model, prune.block)
    for name in prunable.layers:
        weight = model.get_parameter(f"{name}.weight")
        weight.data.view(-1)[: round(share * weight.numel())] = 0  # where zeros stand is the same to a file
    layers = {name: m for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    ends = [*layers][:1] + [*layers][-1:]
    for name, layer in layers.items() if bits < 32 else ():
        n = 2 ** ((8 if name in ends else bits) - 1) - 1
        codes = torch.where(layer.weight == 0, 0, n)
        set_int_repr(layer, codes, torch.ones(len(codes), *[1] * (codes.dim() - 1)))
    return lab.cost.bytes_stored(model)


def share_for(ground: Task, prune: lab.SparseByteNN, bits: int, room: int) -> float:
    """The least share, in hundredths and at most 0.95, at which the network fits the room."""
    return bisect.bisect_left(range(95), -room, key=lambda k: -size_at(ground, prune, k / 100, bits)) / 100


def equal_bytes(options: argparse.Namespace) -> dict:
    """The contest, resumed where it was broken off."""
    made = at_equal_bytes(options.quick)
    found = contest.run(
        made, options.runs / made.name, made.rivals, made.seeds[:1] if options.quick else made.seeds,
        made.budgets[1:2] if options.quick else made.budgets,
    )  # fmt: skip
    print(contest.shown(made, found))
    if options.json and not options.quick:
        contest.keep(made, found, options.json.with_name("bytes.json"))
    return {"summary": json.loads(contest.summary(made, found).to_json(orient="records"))}


# -- kills -------------------------------------------------------------------------------------------------------------


def kills(options: argparse.Namespace) -> dict:
    """How many of so many chains that were killed once ended as the unbroken run."""
    count = 2 if options.quick else 20
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        unbroken = ended(Path(folder) / "unbroken")
        whole, rows = time.monotonic() - start, []
        for k in range(count):
            path, moment = Path(folder) / str(k), draw.uniform(0.05, 0.95) * whole
            reached = killed(path, moment)
            same = ended(path) == unbroken
            rows.append(
                {"killed after": round(moment, 1), "of": round(whole, 1), "stages begun": reached, "same": same}
            )
            print(rows[-1], flush=True)
    same = sum(row["same"] for row in rows)
    return {"same": same, "of": count, "kills": rows}


def child(folder: Path) -> None:
    """The chain, killed or not, and what it ends with."""
    with seeded(0):
        net = lab.nets.mobilenet_v1(0.25, classes=10, channels=1, size=16)
    recipes = (
        lab.GAL(lam=0.3, steps=60, finetune_steps=40, released="uniform_masks"),
        lab.SparseByteNN(block=(4, 4), sparsity=0.5, steps=60, regroup_every=5),
        lab.DQSS(
            weight_bits=8, activation_bits=8, placement="full", steps=40, calibration=64, candidates=("max", "mse")
        ),
    )
    outcome = lab.Chain(*recipes).run(lab.tasks.digits(net, size=16), seed=0, progress=False, checkpoint=folder)
    rows = [row for part in outcome.outcomes for row in part.report if row.kind != "timed"]
    exact = {"rows": [[row.name, row.before, row.after] for row in rows]}
    (folder / "ended.json").write_text(json.dumps(exact | {"network": contest.fingerprint(outcome.model)}))


def begun(folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, __file__, "--child", str(folder)], env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def ended(folder: Path) -> dict:
    """What the chain ends with in this folder; it goes on from what is there."""
    if begun(folder).wait():
        raise RuntimeError("the chain failed: its error stands above")
    return json.loads((folder / "ended.json").read_text())


def killed(folder: Path, seconds: float) -> list[str]:
    """Kill the chain after so many seconds; gives the stages that had begun by then."""
    process = begun(folder)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return sorted(path.name for path in folder.glob("[0-9]*")) if folder.exists() else []


# -- the command -------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps, rounds, cells and kills: under three minutes")
    parser.add_argument("--part", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--json", type=Path, help="write the figures of these parts here, beside those of others")
    parser.add_argument("--runs", type=Path, default=contest.ROOT / "runs", help="where cells are kept")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.child:
        child(options.child)
        return
    made = {"speed": speed, "bytes": equal_bytes, "kills": kills}
    wanted = options.part.split(",")
    if unknown := {*wanted} - {*made}:
        parser.error(f"--part {', '.join(sorted(unknown))}: give some of {', '.join(PARTS)}")
    figures = {name: made[name](options) for name in wanted}
    print(json.dumps(figures, indent=1))
    if options.json:
        there = json.loads(options.json.read_text()) if options.json.exists() else {}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        settings = {"stages": [repr(stage) for stage in stages(options.quick)], "machine": machine("onnxruntime")}
        options.json.write_text(json.dumps(there | figures | settings, indent=1) + "\n")


if __name__ == "__main__":
    main()
