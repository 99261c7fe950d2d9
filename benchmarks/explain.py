"""Before and after, held to planted sabotage: how often `lab.lens.compare` raises an alarm, with cause and without.

Twenty-two small architectures learn the digits; each is compressed three ways (weights rounded to 8 bits, a third of
them 0, its smallest filters silent), which is to raise no alarm, and sabotaged in every way that `SABOTAGE` lists,
which is to raise one.

    python benchmarks/explain.py [--quick] [--seeds 3] [--minutes 8] [--json data/lens/explain.json]

A cell is a network and a seed, about five seconds; each is a line in `runs/explain`, so that a run that was broken off
goes on behind it, and `--minutes` ends one. `--json` keeps what all cells so far have shown. `--quick` takes two.
"""

import argparse
import copy
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import lab
from lab.core import store, tasks
from lab.core.machine import machine
from lab.core.training import seeded
from lab.lens.examples import compared
from lab.lens.sanity import checks

CLASSES, MOST, STEPS = 10, 128, 160
RUNS = Path(__file__).parents[1] / "runs" / "explain"
KINDS = ("sound", "sabotage", "without effect")


class Residual(nn.Module):
    """Adds what a chain of layers makes of its input to it."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.inside = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inside(x)


class Patches(nn.Module):
    """Patches of 2 x 2 pixels as tokens (N, 16, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 2, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.embed(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Attention of tokens to one another, with its norm and residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.attend = nn.LayerNorm(width), nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        return x + self.attend(y, y, y, need_weights=False)[0]


class Turned(nn.Module):
    """Layers over the other axis of tokens (N, T, C)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.inside = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inside(x.transpose(1, 2)).transpose(1, 2)


class Rows(nn.Module):
    """The rows of a picture (N, 1, 8, 8) as the steps of a recurrent network; what its last step gives, (N, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.steps = nn.LSTM(8, width, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.steps(x[:, 0])[0][:, -1]


class Mean(nn.Module):
    """The mean over tokens."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1)


def plain(act: type[nn.Module], norm: Callable[[int], nn.Module], width: int = 16, groups: int = 1) -> nn.Module:
    """Three convolutions with this activation and norm."""
    parts: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1), norm(width), act()]
    for stride in (2, 2):
        parts += [nn.Conv2d(width, width, 3, stride, 1, groups=groups), norm(width), act()]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(4 * width, CLASSES))


def residual(norm: Callable[[int], nn.Module]) -> nn.Module:
    """A stem and two residual blocks."""

    def block() -> nn.Module:
        return Residual(nn.Conv2d(16, 16, 3, padding=1), norm(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), norm(16))

    head = (nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, CLASSES))
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), norm(16), nn.ReLU(), block(), nn.ReLU(), block(), *head)


def transformer(heads: int) -> nn.Module:
    """Two blocks of attention and a perceptron."""

    def perceptron() -> nn.Module:
        return Residual(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    blocks = (Attention(32, heads), perceptron(), Attention(32, heads), perceptron())
    return nn.Sequential(Patches(32), *blocks, nn.LayerNorm(32), nn.Flatten(), nn.Linear(512, CLASSES))


def mixer() -> nn.Module:
    """A perceptron over tokens and one over their features, twice."""

    def block() -> nn.Module:
        tokens = Residual(nn.LayerNorm(32), Turned(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)))
        return nn.Sequential(tokens, Residual(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)))

    return nn.Sequential(Patches(32), block(), block(), nn.LayerNorm(32), Mean(), nn.Linear(32, CLASSES))


def dense(*widths: int, act: type[nn.Module] = nn.ReLU) -> nn.Module:
    """A perceptron over all pixels."""
    parts: list[nn.Module] = [nn.Flatten()]
    for inside, outside in zip((64, *widths), widths, strict=False):
        parts += [nn.Linear(inside, outside), act()]
    return nn.Sequential(*parts, nn.Linear(widths[-1], CLASSES))


def no_norm(_: int) -> nn.Module:
    return nn.Identity()


NETS: dict[str, Callable[[], nn.Module]] = {
    "convolutions": lambda: plain(nn.ReLU, no_norm),
    "batch norm": lambda: plain(nn.ReLU, nn.BatchNorm2d),
    "group norm": lambda: plain(nn.ReLU, lambda c: nn.GroupNorm(4, c)),
    "instance norm": lambda: plain(nn.ReLU, lambda c: nn.InstanceNorm2d(c, affine=True)),
    "GELU": lambda: plain(nn.GELU, nn.BatchNorm2d),
    "SiLU": lambda: plain(nn.SiLU, nn.BatchNorm2d),
    "tanh": lambda: plain(nn.Tanh, no_norm),
    "leaky": lambda: plain(nn.LeakyReLU, nn.BatchNorm2d),
    "hard swish": lambda: plain(nn.Hardswish, nn.BatchNorm2d),
    "groups": lambda: plain(nn.ReLU, nn.BatchNorm2d, groups=4),
    "wide": lambda: plain(nn.ReLU, nn.BatchNorm2d, width=32),
    "narrow": lambda: plain(nn.ReLU, nn.BatchNorm2d, width=8),
    "residual": lambda: residual(nn.BatchNorm2d),
    "residual, group norm": lambda: residual(lambda c: nn.GroupNorm(4, c)),
    "transformer": lambda: transformer(4),
    "transformer, one head": lambda: transformer(1),
    "mixer": mixer,
    "perceptron": lambda: dense(64, 64),
    "deep perceptron": lambda: dense(48, 48, 48, act=nn.SiLU),
    "LeNet": lambda: nn.Sequential(nn.Upsample(28), lab.nets.lenet()),
    "vision transformer": lambda: lab.nets.vit(size=8, patch=2, width=32, depth=2),
    "recurrent": lambda: nn.Sequential(Rows(32), nn.Linear(32, CLASSES)),
}


def trained(make: Callable[[], nn.Module], data: tuple[torch.Tensor, torch.Tensor], seed: int) -> nn.Module:
    """A network that has learned the digits, in eval mode."""
    x, y = data
    with seeded(seed):
        net = make()
        optimiser = torch.optim.Adam(net.parameters(), 3e-3)
        for step in range(STEPS):
            for group in optimiser.param_groups:
                group["lr"] = 3e-3 * (1 - step / STEPS)
            some = torch.randint(len(x), (64,))
            optimiser.zero_grad()
            F.cross_entropy(net(x[some]), y[some]).backward()
            optimiser.step()
    return net.eval()


def changed(net: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """A copy in which the weights of layers are changed."""
    copied = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in copied.parameters():
            if parameter.ndim > 1:
                parameter.copy_(change(parameter))
    return copied


def rounded(w: torch.Tensor) -> torch.Tensor:
    scale = w.abs().max() / 127
    return (w / scale).round() * scale


def thinned(w: torch.Tensor) -> torch.Tensor:
    return w * (w.abs() > w.abs().flatten().kthvalue(max(1, w.numel() // 3)).values)


def silenced(w: torch.Tensor) -> torch.Tensor:
    if len(w) in (1, CLASSES):  # a token of its own is no filter
        return w
    norms = w.flatten(1).norm(dim=1)
    return w * (norms > norms.kthvalue(max(1, len(w) // 20)).values).view(-1, *[1] * (w.ndim - 1))


COMPRESSED = {"8 bits": rounded, "a third of the weights 0": thinned, "smallest filters silent": silenced}


def layers(net: nn.Module) -> list[nn.Module]:
    return [m for m in net.modules() if isinstance(getattr(m, "weight", None), torch.Tensor) and m.weight.ndim > 1]


def edited(net: nn.Module, at: int, change: Callable[[nn.Module], None]) -> nn.Module:
    """A copy in which one layer with weights is changed; at 0 is the first."""
    copied = copy.deepcopy(net)
    with torch.no_grad():
        change(layers(copied)[at])
    return copied


def shuffled(layer: nn.Module) -> None:
    order = torch.randperm(len(layer.weight), generator=torch.Generator().manual_seed(0))
    for part in (layer.weight, layer.bias):
        if part is not None:
            part.copy_(part[order])


def zeroed(layer: nn.Module) -> None:
    for part in (layer.weight, layer.bias):
        if part is not None:
            part.zero_()


def uncalled(net: nn.Module) -> list[str]:
    """The parameters of two axes or more that are no layer's `weight`: of attention, of steps, of positions."""
    return [name for name, p in net.named_parameters() if p.ndim > 1 and not name.endswith(".weight")]


def spoiled(net: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """A copy in which the largest of these parameters is changed."""
    copied = copy.deepcopy(net)
    parameters = dict(copied.named_parameters())
    with torch.no_grad():
        largest = max((parameters[name] for name in uncalled(net)), key=torch.Tensor.numel)
        largest.copy_(change(largest))
    return copied


def mixed(w: torch.Tensor) -> torch.Tensor:
    """Other rows of the longest axis."""
    axis = max(range(w.ndim), key=lambda k: w.shape[k])
    order = torch.randperm(w.shape[axis], generator=torch.Generator().manual_seed(0))
    return w.index_select(axis, order)


def rolled(layer: nn.Module) -> None:
    layer.weight.copy_(layer.weight.roll(1, 0))
    layer.bias.copy_(layer.bias.roll(1, 0))


class Prepared(nn.Module):
    """A network behind a step that its pictures never had."""

    def __init__(self, net: nn.Module, step: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.net, self.step = net, step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(self.step(x))


Pair = tuple[nn.Module, nn.Module, torch.Tensor, torch.Tensor]
SABOTAGE: dict[str, Callable[[nn.Module, nn.Module, torch.Tensor, torch.Tensor], Pair]] = {
    "fresh weights": lambda a, b, x, y: (a, lab.lens.with_fresh_weights(b), x, y),
    "fresh last layer": lambda a, b, x, y: (a, edited(b, -1, lambda m: m.reset_parameters()), x, y),
    "fresh first layer": lambda a, b, x, y: (a, edited(b, 0, lambda m: m.reset_parameters()), x, y),
    "filters shuffled": lambda a, b, x, y: (a, edited(b, len(layers(b)) // 2, shuffled), x, y),
    "a layer zeroed": lambda a, b, x, y: (a, edited(b, len(layers(b)) // 2, zeroed), x, y),
    "classes renumbered": lambda a, b, x, y: (a, edited(b, -1, rolled), x, y),
    "last layer negated": lambda a, b, x, y: (a, edited(b, -1, lambda m: m.weight.neg_()), x, y),
    "noise in the weights": lambda a, b, x, y: (a, changed(b, lambda w: w + 3 * w.std() * torch.randn_like(w)), x, y),
    "pixels / 255": lambda a, b, x, y: (a, Prepared(b, lambda z: z / 255), x, y),
    "pixels inverted": lambda a, b, x, y: (a, Prepared(b, lambda z: -z), x, y),
    "rows for columns": lambda a, b, x, y: (a, Prepared(b, lambda z: z.transpose(2, 3)), x, y),
    "both asked upside down": lambda a, b, x, y: (a, b, x.flip(2), y),
    "labels shifted by a class": lambda a, b, x, y: (a, b, x, (y + 1) % CLASSES),
    "labels of the next picture": lambda a, b, x, y: (a, b, x, y.roll(1)),
    "labels shuffled": lambda a, b, x, y: (a, b, x, y[torch.randperm(len(y))]),
    "swapped": lambda a, b, x, y: (changed(a, thinned), a, x, y),
    "the same twice": lambda a, b, x, y: (a, copy.deepcopy(a), x, y),
    "weights of no layer shuffled": lambda a, b, x, y: (a, spoiled(b, mixed), x, y),
    "weights of no layer zeroed": lambda a, b, x, y: (a, spoiled(b, torch.zeros_like), x, y),
}


def alarms(before: nn.Module, after: nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[str]:
    """The names of the checks that raise an alarm."""
    pair = compared(before, after, [(x, y)], (), {}, MOST, 0)
    return [check.name for check in checks(pair) if check.alarm]


def is_harmless(pair: Pair, net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether the network answers all that it is asked as it did, such as one with instance norm to pixels / 255."""
    before, after, asked, labels = pair
    if before is not net or not torch.equal(labels, y) or not torch.equal(asked, x) or equal(before, after):
        return False
    with torch.no_grad():
        return torch.equal(after(x[:MOST]).argmax(1), changed(net, rounded)(x[:MOST]).argmax(1))


def equal(before: nn.Module, after: nn.Module) -> bool:
    """Whether two networks have the same weights."""
    pairs = zip(before.parameters(), after.parameters(), strict=False)
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


def run(name: str, seed: int) -> dict[str, dict[str, list[str]]]:
    """The alarms of a network, by kind ('sound', 'sabotage', 'without effect') and by what was done to it."""
    x, y, x_test, y_test = tasks.digits_data()
    net = trained(NETS[name], (x, y), seed)
    shown: dict[str, dict[str, list[str]]] = {kind: {} for kind in KINDS}
    for way, change in COMPRESSED.items():
        shown["sound"][way] = alarms(net, changed(net, change), x_test, y_test)
    for way, spoil in SABOTAGE.items():
        if "of no layer" in way and not uncalled(net):
            continue
        with seeded(seed + 1_000):  # with the network's own seed fresh weights are those that it began with
            pair = spoil(net, changed(net, rounded), x_test, y_test)
        kind = "without effect" if is_harmless(pair, net, x_test, y_test) else "sabotage"
        shown[kind][way] = alarms(*pair)
    return shown


def figures(rows: Mapping[tuple[str, int], dict]) -> dict:
    """The counts that are kept, of what each network and seed has shown."""
    every = {kind: [(*cell, way, row[kind][way]) for cell, row in rows.items() for way in row[kind]] for kind in KINDS}
    return {
        "networks": len({name for name, _ in rows}),
        "seeds": len({seed for _, seed in rows}),
        "sound_pairs": len(every["sound"]),
        "false_alarms": sum(bool(alarms) for *_, alarms in every["sound"]),
        "sabotaged_pairs": len(every["sabotage"]),
        "missed": sum(not alarms for *_, alarms in every["sabotage"]),
        "without_effect": len(every["without effect"]),
        "sabotage": len(SABOTAGE),
        "compressed": len(COMPRESSED),
    }


def raised_by(rows: Mapping[tuple[str, int], dict]) -> dict[str, dict[str, int]]:
    """Of each sabotage how many networks and seeds each check raised its alarm for."""
    pairs = [(way, alarms) for row in rows.values() for way, alarms in row["sabotage"].items()]
    counts: dict[str, Counter] = {way: Counter() for way in SABOTAGE}
    for way, alarms in pairs:
        counts[way].update(alarms)
    return {way: dict(count.most_common()) for way, count in counts.items()}


def record(cell: tuple[str, int], row: dict) -> dict:
    """What is kept of a network and a seed: how many pairs it had, false alarms and what was missed."""
    false = {way: alarms for way, alarms in row["sound"].items() if alarms}
    missed = [way for way, alarms in row["sabotage"].items() if not alarms]
    counts = {kind: len(row[kind]) for kind in ("sound", "sabotage")}
    return {"network": cell[0], "seed": cell[1], **counts, "false": false, "missed": missed}


def done(cells: Sequence[tuple[str, int]], path: Path, minutes: float) -> dict[tuple[str, int], dict]:
    """What each cell has shown, those that are missing once they have run."""
    lines = path.read_text(encoding="utf-8").splitlines(True) if path.exists() else []
    whole = [json.loads(line) for line in lines if line.endswith("\n")]  # a kill may leave half of the last
    rows = {tuple(line["cell"]): line["shown"] for line in whole}
    until = time.monotonic() + 60 * minutes
    for cell in cells:
        if cell in rows or time.monotonic() > until:
            continue
        start, row = time.monotonic(), run(*cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"cell": cell, "shown": row}) + "\n")
        rows[cell] = row
        missed = [way for way, alarms in row["sabotage"].items() if not alarms]
        false = {way: alarms for way, alarms in row["sound"].items() if alarms}
        print(f"{cell}: {time.monotonic() - start:.0f} s, missed {missed}, false {false}", flush=True)
    return {cell: rows[cell] for cell in cells if cell in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two networks, one seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which no further cell begins")
    parser.add_argument("--json", type=Path, help="where to write what is kept")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where lines are kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names, seeds = (list(NETS)[:2], 1) if arguments.quick else (list(NETS), arguments.seeds)
    rows = done(
        [(name, seed) for seed in range(seeds) for name in names], arguments.runs / "cells.jsonl", arguments.minutes
    )
    kept = {
        "figures": figures(rows),
        "settings": {"seeds": seeds, "examples": MOST, "steps": STEPS, "torch": torch.__version__},
        "machine": machine(),
        "sabotage": list(SABOTAGE),
        "compressed": list(COMPRESSED),
        "raised_by": raised_by(rows),
        "records": [record(cell, row) for cell, row in rows.items()],
    }
    print(json.dumps(kept["figures"], indent=1))
    if arguments.json:
        store.write(arguments.json, (json.dumps(kept, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
