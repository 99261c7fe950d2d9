"""A network as a `torch.export` program: plain operators and weights in one .pt2 file, without the class it came from.

A .pt2 file can hold pickles and the names of functions to call. Those that are written here hold neither, and none that
does is read: see `validate`.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import nn

from . import store
from .batch import Example, call, each, joined, moved, tensors
from .errors import first_line, quiet
from .task import evaluating

NAME = "model.pt2"  # in an outcome's folder
GRAPH, SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
RECORDS = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|archive_format|archive_version|byteorder|version|"
    rf"\.data/(version|serialization_id)|{GRAPH}|{SAMPLES}|{'|'.join(CONFIGS)}"
)
# Operators on tensors and arithmetic on their sizes; from_file is the one of aten that opens files.
OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims)\.(?!from_file\b)\w+\.\w+|torch\.sym_\w+|math\.(ceil|floor|trunc|sqrt|pow)|"
    r"_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pos|pow|eq|ne|lt|le|gt|ge|and_|or_|getitem)"
)
# Sizes, and sympy's functions of them: "2*s77", "Max(1, Symbol('s77', positive=True))".
SIZES = re.compile(r"([su]\d+|Symbol\('[su]\d+'(, [a-z]+=(True|False))*\)|[A-Z][A-Za-z]*|\d+|[-+*/%<>=(), ])*")

IMPORTS = ("__enum__", "default_factory", "\\u")  # by which torch imports modules, in a tree's description; escapes


class NoStructureError(ValueError, AttributeError):
    """What was asked of a program needs the modules of the network that it was written from."""


class Program(nn.Module):
    """A network that was read from its program: it computes, on any batch, and has no modules to cut, train or show."""

    def __init__(self, content: bytes, stored: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.content, self.stored = content, stored  # the file, and what the outcome's method stored beside it
        self.graph_module = _read(content)
        self.training = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network gives; inputs as it took them."""
        return self.graph_module(*args, **kwargs)

    def train(self, mode: bool = True) -> "Program":
        """Itself: the program is of evaluation mode."""
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise NoStructureError(
                f"this outcome was loaded from its program, which computes and has no {name!r}: "
                "call lab.load(folder, base=net) for all else"
            ) from None


class Unbuilt:
    """What a method makes of a network's modules, where there is only its program: every use says so in one line."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NoStructureError(
            f"this outcome was loaded from its program, without the modules that {name!r} needs: "
            "call lab.load(folder, base=net)"
        )


def to_bytes(model: nn.Module, example: Example) -> bytes:
    """The .pt2 file of a network in eval mode, its batch axis free; `example` is one input with its batch axis.

    ValueError in one line for a network that torch.export cannot write, or writes as another function.
    """
    if isinstance(model, Program):
        return model.content
    device = next(model.parameters(), next(tensors(example))).device
    example = moved(example, device)
    x = joined([example, example])  # a batch of one would be a constant to it
    try:
        with evaluating(model), quiet("torch.export", "torch._export", "torch.fx"), torch.no_grad():
            content = _exported(model, x)
            read = Program(content)
            same = all(_same(call(read, part), call(model, part)) for part in (x, example))
    except Exception as error:  # of many kinds, some with pages of advice
        raise ValueError(
            f"torch.export cannot write {type(model).__name__} ({type(error).__name__}: {first_line(error)}): "
            "keep the class and give it to lab.load(folder, base=net)"
        ) from error
    if not same:
        raise ValueError(f"torch.export writes {type(model).__name__} as another function: keep the class")
    return content


def write(model: nn.Module, path: str | Path, example: Example) -> Path:
    """Write a network as a .pt2 file, which `torch.export.load` reads without the lab; returns the path."""
    store.write(Path(path), to_bytes(model, example))
    return Path(path)


def _exported(model: nn.Module, x: Example) -> bytes:
    args = x if isinstance(x, tuple) else () if isinstance(x, dict) else (x,)
    kwargs = x if isinstance(x, dict) else {}
    batch: Any = {0: torch.export.Dim("batch")}
    shapes = each(kwargs or args, lambda _: batch)
    program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    program.example_inputs = None  # which torch would pickle
    for node in program.graph.nodes:  # whose source files are the user's own
        for name in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn"):
            node.meta.pop(name, None)
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def _same(a: Any, b: Any) -> bool:
    pairs = zip(tensors(a), tensors(b), strict=True)
    return all(torch.equal(mine, its) for mine, its in pairs)


def _read(content: bytes) -> nn.Module:
    """The module of a .pt2 file; ValueError in one line for one that holds more than operators and weights."""
    validate(content)
    with quiet("torch.export", "torch._export", "torch.fx"):
        try:
            return torch.export.load(io.BytesIO(content)).module()
        except Exception as error:  # of many kinds: what is no program fails where it is met
            raise ValueError(f"{NAME} is not a program that this torch can read ({first_line(error)})") from error


def validate(content: bytes) -> None:
    """Raise a one-line ValueError for a .pt2 file with a pickle in it, or that calls more than operators on tensors.

    `torch.export.load` would unpickle samples, weights and constants, evaluates expressions of sizes as Python, and
    calls whatever function of torch a node names.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            records = {str(PurePosixPath(*PurePosixPath(name).parts[1:])): file.read(name) for name in file.namelist()}
        configs = [json.loads(records[name])["config"] for name in CONFIGS]
        graph = json.loads(records[GRAPH])
        if len(records) != len(file.namelist()):
            raise ValueError("two records have one name")
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, RecursionError, NotImplementedError) as error:
        raise ValueError(
            f"{NAME} is not a program of torch 2.9 or newer ({first_line(error)}): save it again"
        ) from error
    strange = [name for name in records if not RECORDS.fullmatch(name)]
    strange += [SAMPLES] if records.get(SAMPLES) else []
    strange += [str(part) for config in configs for part in config.values() if not _is_raw(part)]
    strange += [text for text in _expressions(graph) if not SIZES.fullmatch(text)]
    strange += [text for text in _strings(graph) if any(word in text for word in IMPORTS)]
    strange += [text for text in _targets(graph) if not OPERATORS.fullmatch(text)]
    if strange:
        raise ValueError(f"{NAME} holds more than operators and weights ({strange[0][:80]!r}): it is not read")


def _is_raw(part: Any) -> bool:
    return part["use_pickle"] is False and re.fullmatch(r"(weight|tensor)_\d+", part["path_name"]) is not None


def _expressions(tree: Any) -> Iterator[str]:
    """The expressions of sizes in a graph, which torch hands to sympy, and the names of its symbols."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key in ("expr_str", "range_constraints", "dims"):
                yield from map(str, [value] if key == "expr_str" else value)
            yield from _expressions(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _expressions(value)


def _strings(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _strings(value)


def _targets(tree: Any) -> Iterator[str]:
    """What the nodes of a graph, and of the graphs within it, call."""
    if isinstance(tree, dict):
        if "target" in tree and "inputs" in tree:
            yield str(tree["target"])
        for value in tree.values():
            yield from _targets(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _targets(value)
