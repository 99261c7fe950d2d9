"""Before and after, held to planted sabotage: how often `lab.lens.compare` raises an alarm, with cause and without.

Twenty small architectures learn the digits; each is compressed three ways (weights rounded to 8 bits, a third of them
0, its smallest filters silent), which is to raise no alarm, and sabotaged in every way that `SABOTAGE` lists, which is
to raise one. Run: `python benchmarks/explain.py --json explain.json` (some minutes); `--quick` takes two.
"""

import argparse
import copy
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import lab
from lab.core import tasks
from lab.core.training import seeded
from lab.lens.examples import compared
from lab.lens.sanity import checks

CLASSES, MOST, STEPS = 10, 128, 160


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
    if len(w) == CLASSES:
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


def measured(names: list[str], seed: int) -> dict[str, dict[str, dict[str, list[str]]]]:
    """By kind ('sound', 'sabotage'), way and network, the alarms."""
    x, y, x_test, y_test = tasks.digits_data()
    table: dict[str, dict[str, dict[str, list[str]]]] = {"sound": {}, "sabotage": {}, "without effect": {}}
    for name in names:
        start = time.perf_counter()
        net = trained(NETS[name], (x, y), seed)
        for way, change in COMPRESSED.items():
            table["sound"].setdefault(way, {})[name] = alarms(net, changed(net, change), x_test, y_test)
        for way, spoil in SABOTAGE.items():
            with seeded(seed + 1_000):  # with the network's own seed fresh weights are those that it began with
                pair = spoil(net, changed(net, rounded), x_test, y_test)
            kind = "without effect" if is_harmless(pair, net, x_test, y_test) else "sabotage"
            table[kind].setdefault(way, {})[name] = alarms(*pair)
        missed = [way for way, nets in table["sabotage"].items() if not nets.get(name, ["elsewhere"])]
        false = {way: table["sound"][way][name] for way in COMPRESSED if table["sound"][way][name]}
        print(f"{name}: {time.perf_counter() - start:.0f} s, missed {missed}, false {false}", flush=True)
    return table


def summary(table: dict[str, dict[str, dict[str, list[str]]]], seed: int) -> dict:
    """The counts that are kept."""
    false = {way: {n: a for n, a in nets.items() if a} for way, nets in table["sound"].items()}
    missed = {way: [n for n, a in nets.items() if not a] for way, nets in table["sabotage"].items()}
    return {
        "networks": len(next(iter(table["sound"].values()))),
        "sound pairs": sum(map(len, table["sound"].values())),
        "false alarms": sum(map(len, false.values())),
        "sabotaged pairs": sum(map(len, table["sabotage"].values())),
        "missed": sum(map(len, missed.values())),
        "false by way": {way: nets for way, nets in false.items() if nets},
        "missed by way": {way: nets for way, nets in missed.items() if nets},
        "without effect": {way: list(nets) for way, nets in table["without effect"].items()},
        "sabotage": list(SABOTAGE),
        "compressed": list(table["sound"]),
        "settings": {"seed": seed, "examples": MOST, "steps": STEPS, "torch": torch.__version__},
        "machine": platform.machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two networks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write what is kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = list(NETS)[:2] if arguments.quick else list(NETS)
    kept = summary(measured(names, arguments.seed), arguments.seed)
    print(json.dumps(kept, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
