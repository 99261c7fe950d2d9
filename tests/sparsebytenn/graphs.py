"""Random networks over all operators of the engine, drawn by hypothesis: programs of steps that read earlier values.

A step's value may be read by any number of later steps, in any place; steps work in place, share modules, give several
values; a network gives one value, or several in a tuple or in dictionaries. Printed, a network is its program.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

LARGEST = 3_000  # numbers of a value


class Program(nn.Module):
    """Steps one after another, each a line of text, a function of the network and values, and which values it reads."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.steps: list[tuple[str, Callable, tuple[int, ...]]] = []
        self.counts: list[int] = []  # values of each step
        self.kinds: list[str] = []  # the functions that drew the steps
        self.inputs: list[tuple[int, ...]] = []
        self.form, self.outputs = "one", (0,)

    def forward(self, x: Tensor) -> Any:
        return self.run(x)

    def run(self, *inputs: Tensor) -> Any:
        """What the network gives for its inputs."""
        values = list(inputs)
        for _, call, reads in self.steps:
            values += listed(call(self, *(values[i] for i in reads)))
        ends = [values[i] for i in self.outputs]
        if self.form == "dictionary":
            return {f"output{n}": end for n, end in enumerate(ends)}
        if self.form == "nested":
            return {"first": ends[0], "others": (ends[1:], {"last": ends[-1]})}
        return ends[0] if self.form == "one" else tuple(ends)

    def held(self, part: nn.Module | Tensor) -> str:
        """The name under which the network now holds a module or a parameter."""
        name = f"part{len(self._modules) + len(self._parameters)}"
        if isinstance(part, nn.Module):
            self.add_module(name, part.eval())
        else:
            self.register_parameter(name, nn.Parameter(part))
        return name

    def __repr__(self) -> str:
        lines, at = [f"weights of seed {self.seed}; inputs {self.inputs}"], len(self.inputs)
        for text, _, reads in self.steps:
            lines.append(f"{at}: {text} of {', '.join(map(str, reads))}")
            at += self.counts[len(lines) - 2]
        return "\n".join([*lines, f"gives {self.form}: {self.outputs}"])


class Pair(Program):
    """A program of two inputs."""

    def forward(self, x: Tensor, other: Tensor) -> Any:
        return self.run(x, other)


def listed(values: Any) -> list:
    """A step's values, one or several."""
    return list(values) if isinstance(values, (list, tuple)) else [values]


@dataclass
class Draft:
    """A program while it is drawn, with the values that its steps give for an example."""

    draw: Callable
    net: Program
    values: list[Tensor]
    layers: list[tuple[str, int, tuple[int, ...]]] = field(default_factory=list)  # name, dimensions, shape that it read

    def pick(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def int(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, max(low, high)))

    def flag(self) -> bool:
        return self.draw(st.booleans())

    def shape(self, i: int) -> tuple[int, ...]:
        return tuple(self.values[i].shape)

    def value(self, *dims: int, where: Callable[[tuple[int, ...]], bool] = lambda shape: True) -> int:
        """The number of a value of so many dimensions, the later ones first; Unfit where there is none."""
        fit = [i for i, v in enumerate(self.values) if (not dims or v.dim() in dims) and where(tuple(v.shape))]
        if not fit:
            raise Unfit
        return fit[-1 - min(self.int(0, len(fit) - 1), self.int(0, len(fit) - 1))]

    def step(self, text: str, call: Callable, *reads: int) -> int:
        """Append a step; the number of its (first) value. Unfit where torch refuses it, or its values are none to read.

        The step runs on values as the steps before left them, and stays out of the program where it is unfit.
        """
        shapes = [self.values[i].clone() for i in reads]
        try:
            with torch.no_grad():
                tried = listed(call(self.net, *shapes))
                if not all(0 < v.numel() <= LARGEST and v.dim() < 5 and bool(v.isfinite().all()) for v in tried):
                    raise Unfit
                given = listed(call(self.net, *(self.values[i] for i in reads)))
        except (RuntimeError, ValueError) as error:
            raise Unfit from error
        self.net.steps.append((text, call, reads))
        self.net.counts.append(len(given))
        self.values += given
        return len(self.values) - len(given)

    def module(self, module: nn.Module, i: int) -> int:
        """A step that calls a module."""
        name = self.net.held(module)
        self.layers.append((name, len(self.shape(i)), self.shape(i)))
        return self.step(f"{name} {module}", lambda net, x: getattr(net, name)(x), i)

    def again(self) -> int:
        """A module once more, on another value (or the same) that it takes."""
        if not self.layers:
            raise Unfit
        name, dims, shape = self.layers[self.int(0, len(self.layers) - 1)]
        same = lambda other: other[1] == shape[1] if dims == 4 else other[-1] == shape[-1]  # noqa: E731
        return self.step(f"again {name}", lambda net, x: getattr(net, name)(x), self.value(dims, where=same))


class Unfit(Exception):
    """A step that the values so far do not allow."""


def network(kinds: Iterable[Callable], sizes: tuple[int, int] = (2, 12)) -> st.SearchStrategy:
    """Programs of steps of these kinds, each with an example: (network in eval mode, a tuple of inputs)."""
    kinds = tuple(kinds)

    @st.composite
    def drawn(draw: Callable) -> tuple[Program, tuple[Tensor, ...]]:
        with torch.random.fork_rng():
            seed = draw(st.integers(0, 999))
            torch.manual_seed(seed)
            count = draw(st.sampled_from((1, 1, 1, 1, 1, 2)))
            net = (Program if count == 1 else Pair)(seed)
            sides = st.integers(1, 5), st.integers(3, 12), st.integers(3, 12)
            net.inputs = [(1, *(draw(side) for side in sides)) for _ in range(count)]
            inputs = tuple(torch.randn(shape) for shape in net.inputs)
            draft = Draft(draw, net.eval(), [x.clone() for x in inputs])
            for _ in range(draw(st.integers(*sizes))):
                kind = draw(st.sampled_from(kinds))
                try:
                    kind(draft)
                except Unfit:
                    continue
                net.kinds.append(kind.__name__)
            _outputs(draft)
            _spare(net.eval(), draw(st.sampled_from((0, 0, 0.5, 0.9))))
            return net, inputs

    return drawn()


def _outputs(d: Draft) -> None:
    """What the network gives: its last value, or all that no step has read, and perhaps one that some have."""
    d.net.form = d.pick("one", "tuple", "dictionary", "nested")
    last, read = len(d.values) - 1, {i for _, _, reads in d.net.steps for i in reads}
    unread = [i for i in range(last) if i not in read and i >= len(d.net.inputs)]
    more = [d.int(0, last)] if d.flag() else []
    d.net.outputs = (last,) if d.net.form == "one" else (last, *unread, *more)


@torch.no_grad()
def _spare(net: nn.Module, share: float) -> None:
    """Weights and norms as training leaves them, with that share of the 4 x 1 blocks of matrices zeroed."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
        if (
            isinstance(module, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm)
            and module.weight is not None
        ):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.3)
        if isinstance(module, nn.Conv2d | nn.Linear):
            flat = module.weight.view(len(module.weight), -1)
            for rows in flat.split(4):
                rows[:, torch.rand(flat.shape[1]) < share] = 0
