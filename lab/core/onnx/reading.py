"""An ONNX file as a network of torch: layers are modules that can be cut and counted, all else plain calls.

What a file says of its sizes is computed as it is read. Its layers are called after their weights ('features.0') or
their nodes, so that what names a layer names the same one in the file.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from ..batch import Example, tensors
from ..distribution import install
from ..errors import first_line, kind_and_line, shown
from . import from_layers, from_ops, from_shapes
from .fusing import fused
from .values import OnnxReader, OnnxValue, UnreadError, identifier

OPSETS = (9, 23)  # the oldest and the newest whose operators are read as they are defined
BATCHES = (2, 3, 5)  # lengths of a free first axis with which a file is read
SIDES = (224, 256)  # lengths of other free axes, where no example says them: none of these may matter
_FORMS: dict[str, Callable] = from_layers.FORMS | from_shapes.FORMS | from_ops.FORMS


def module(path: str | Path, example: Example | None = None) -> fx.GraphModule:
    """The network that an ONNX file holds, in eval mode: it takes the file's inputs in order, and gives its output.

    Several outputs come by name, as `runtime.Deployed` gives them. Nodes with constant weights are layers of torch, and
    weights in codes (QuantizeLinear) are floats on their grid. A free first axis stays free; other free axes are taken
    from `example`, a tensor or tuple of them, which may be left out where no operator needs their lengths. Reads opsets
    9 to 23 of the standard operators. Needs the extra `export`. Raises FileNotFoundError for a file that is not there,
    ValueError in one line for one that is damaged, or naming each node that is not read here.
    """
    model = _loaded(Path(path))
    entries = _entries(model)
    failure: UnreadError | None = None
    for lengths in _plans(entries, example, _channels(model, entries)):
        try:
            return _read(model, entries, lengths)
        except UnreadError as error:
            failure = error
    raise ValueError(f"{path}: {failure}") from failure


# -- the file ----------------------------------------------------------------------------------------------------------


def _loaded(path: Path) -> Any:
    """The file as onnx checks it, its own functions written out."""
    try:
        import onnx
        from onnx import inliner
    except ImportError as error:
        raise ImportError(f"reading ONNX needs onnx: {install('export')}") from error
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: give the path of an .onnx file")
    if not path.is_file():
        raise ValueError(f"{path} is a folder: give the path of an .onnx file")
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and onnx's own kinds
        raise ValueError(f"{path} is no ONNX file, or a damaged one ({first_line(error)}): write it again") from error
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions or not OPSETS[0] <= versions[0] <= OPSETS[1]:
        raise ValueError(
            f"{path} has operators of opset {versions[0] if versions else 'none'}: {OPSETS[0]} to {OPSETS[1]} are "
            "read, convert it with onnx.version_converter"
        )
    return inliner.inline_local_functions(model) if model.functions else model


def _entries(model: Any) -> dict[str, tuple[list[Any], torch.dtype]]:
    """The inputs by name: their axes, numbers or names or None, and the type of their numbers."""
    held = _initialisers(model)
    entries = {}
    for end in model.graph.input:
        if end.name in held:
            continue
        kind = end.type.tensor_type
        if not kind.HasField("shape"):
            raise ValueError(f"input {end.name} has no shape: run onnx.shape_inference, or export it with one")
        axes = [
            d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else d.dim_param or None for d in kind.shape.dim
        ]
        entries[end.name] = (axes, from_shapes.DTYPES.get(kind.elem_type, torch.float32))
    if not entries:
        raise ValueError("the file has no input: nothing can be computed from one")
    return entries


def _initialisers(model: Any) -> dict[str, Any]:
    """The file's constants by name, those that it holds without their zeros among them."""
    sparse = {tensor.values.name: tensor for tensor in model.graph.sparse_initializer}
    return {tensor.name: tensor for tensor in model.graph.initializer} | sparse


def _channels(model: Any, entries: dict) -> list[int]:
    """How many channels each input has, as the convolution says that reads it; 3 if none does."""
    held = {name: tensor.dims for name, tensor in _initialisers(model).items()}
    counts: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[1] in held:
            groups = next((part.i for part in node.attribute if part.name == "group"), 1)
            counts.setdefault(node.input[0], held[node.input[1]][1] * groups)
    return [counts.get(name, 3) for name in entries]


def _plans(entries: dict, example: Example | None, channels: list[int]) -> Iterator[dict[str, list[tuple[int, ...]]]]:
    """With which shapes of the inputs to read a file: of several batches where the first axis is free, then of one."""
    given = None if example is None else [tuple(x.shape) for x in tensors(example)]
    if given is not None:
        _fitting(entries, given)
    axes = [axes for axes, _ in entries.values()]
    free = {axis[0] for axis in axes if axis and not isinstance(axis[0], int)}
    is_open = given is None and any(not isinstance(n, int) and n not in free for axis in axes for n in axis[1:])
    sides = SIDES if is_open else SIDES[:1]

    def lengths(k: int, batch: int | None, side: int) -> tuple[int, ...]:
        filled = []
        for at, n in enumerate(axes[k]):
            is_batch = not isinstance(n, int) and n in free and (at == 0 or n is not None)
            length = (
                given[k][at] if given is not None else n if isinstance(n, int) else channels[k] if at == 1 else side
            )
            filled.append(length if not is_batch else batch or (given[k][at] if given is not None else 1))
        return tuple(filled)

    runs: list[tuple[int | None, int]] = [(batch, sides[0]) for batch in BATCHES] if free else [(None, sides[0])]
    runs += [(runs[-1][0], sides[-1])] if is_open else []
    yield {name: [lengths(k, *run) for run in runs] for k, name in enumerate(entries)}
    if free and not is_open:
        yield {name: [lengths(k, None, sides[0])] for k, name in enumerate(entries)}


def _fitting(entries: dict, given: list[tuple[int, ...]]) -> None:
    """ValueError where an example is none of the file's inputs; its first axis is a batch of any length."""
    wanted = {name: tuple("any" if not isinstance(n, int) else n for n in axes) for name, (axes, _) in entries.items()}
    fits = len(given) == len(entries) and all(
        len(shape) == len(axes) and all(isinstance(n, str) or n == m for n, m in zip(axes[1:], shape[1:], strict=True))
        for axes, shape in zip(wanted.values(), given, strict=True)
    )
    if not fits:
        asked = ", ".join(f"{name} {axes}" for name, axes in wanted.items()).replace("'", "")
        raise ValueError(f"example has shapes {', '.join(map(str, given))}: the file takes {asked}")


# -- the graph ---------------------------------------------------------------------------------------------------------


def _read(model: Any, entries: dict, lengths: dict[str, list[tuple[int, ...]]]) -> fx.GraphModule:
    """The graph as it comes of runs with these shapes; ValueError naming all nodes that are not read."""
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    reader = OnnxReader(versions[0], len(next(iter(lengths.values()))))
    reader.sums = _sums(model)
    for name, (_, kind) in entries.items():
        node = reader.graph.placeholder(identifier(name))
        runs = (torch.empty(shape, dtype=kind, device="meta") for shape in lengths[name])
        reader.values[name] = OnnxValue(name, tuple(runs), node)
    for name, tensor in _initialisers(model).items():
        reader.values[name] = OnnxValue(name, (_tensor(tensor),) * reader.count)
    missing: dict[str, str] = {}
    for node in model.graph.node:
        try:
            _visit(reader, node)
        except UnreadError as error:
            missing[f"{node.op_type} ({node.name or node.output[0]})"] = str(error)
    if missing:
        raise UnreadError("not all of it is read here: " + "; ".join(f"{at} {why}" for at, why in missing.items()))
    return _finished(reader, model)


def _sums(model: Any) -> dict[str, str]:
    """What is added to each value that an addition alone reads."""
    reads = Counter(end.name for end in model.graph.output)
    for node in model.graph.node:
        reads.update(node.input)
    sums = [node.input for node in model.graph.node if node.op_type == "Add"]
    return {a: b for pair in sums for a, b in (pair, pair[::-1]) if reads[a] == 1}


def _visit(reader: OnnxReader, node: Any) -> None:
    """Read one node; one that reads what could not be read is passed over, if it can be read itself."""
    is_form = node.domain in ("", "ai.onnx") and node.op_type in _FORMS
    inputs = [reader.values.get(name) if name else None for name in node.input]
    is_left_out = any(name and value is None for name, value in zip(node.input, inputs, strict=True))
    if not is_form and (is_left_out or any(value is not None and value.node is not None for value in inputs)):
        raise UnreadError(f"is not an operator that can be read here{f', of {node.domain}' if node.domain else ''}")
    if is_left_out:
        return
    if node.op_type != "DequantizeLinear" and any(name in reader.coded for name in node.input):
        raise UnreadError("computes with codes: only DequantizeLinear reads them here")
    about = {part.name: _attribute(part) for part in node.attribute}
    about |= {"name": node.name or node.output[0], "outputs": len(node.output), "gives": node.output[0]}
    given = _FORMS[node.op_type](reader, inputs, about) if is_form else _computed(reader, node, inputs)
    given = given if isinstance(given, list) else [given]
    if any(node.output[len(given) :]) and node.op_type != "BatchNormalization":
        raise UnreadError(f"gives a second output, {node.output[len(given)]}, which is not read here")
    for name, value in zip(node.output, given, strict=False):
        is_named = value.node is None and value.name in reader.values
        reader.values[name] = value if is_named else replace(value, name=name)


def _computed(reader: OnnxReader, node: Any, inputs: list) -> list[OnnxValue]:
    """What an operator of constants alone gives, by onnx's own evaluator."""
    from onnx.reference import ReferenceEvaluator

    runs = []
    for k in range(reader.count):
        given = {value.name: value.runs[k].numpy() for value in inputs if value is not None}
        named = dict(zip(node.input, (None if v is None else given[v.name] for v in inputs), strict=True))
        try:
            runs.append(ReferenceEvaluator(node, opsets={"": reader.opset}).run(None, named))
        except Exception as error:  # of any kind, as operators differ
            raise UnreadError(f"is not an operator that can be read here ({first_line(error)})") from error
    return [OnnxValue("", tuple(torch.from_numpy(np.asarray(x)) for x in part)) for part in zip(*runs, strict=True)]


def _attribute(part: Any) -> Any:
    """An attribute as Python has it, a tensor as torch has it."""
    from onnx import helper

    value = helper.get_attribute_value(part)
    if isinstance(value, bytes):
        return value.decode()
    return _tensor(value) if hasattr(value, "dims") else value


def _tensor(held: Any) -> Tensor:
    """A file's constant, dense or sparse; codes of 4 bits come as int8 or uint8, short real numbers as float32."""
    from onnx import numpy_helper

    if hasattr(held, "indices"):  # (numbers,) in the flattened tensor, or (numbers, axes)
        at, numbers = _tensor(held.indices), _tensor(held.values)
        dense = torch.zeros(tuple(held.dims), dtype=numbers.dtype)
        dense[tuple(at.T) if at.dim() > 1 else torch.unravel_index(at, dense.shape)] = numbers
        return dense
    try:
        array = numpy_helper.to_array(held)
    except Exception as error:  # of any kind: a type that onnx does not know, lengths that are not its numbers'
        raise UnreadError(f"constant {shown(held.name)} cannot be read ({kind_and_line(error)})") from error
    if array.dtype.kind not in "biuf":
        kind = np.float32 if "float" in array.dtype.name else np.uint8 if "uint" in array.dtype.name else np.int8
        array = array.astype(kind)
    return torch.from_numpy(np.array(array, order="C"))


def _finished(reader: OnnxReader, model: Any) -> fx.GraphModule:
    """The network with the file's outputs, without what none of them needs."""
    ends = {end.name: reader.values[end.name] for end in model.graph.output}
    if codes := [name for name in ends if name in reader.coded]:
        raise UnreadError(f"not all of it is read here: output {codes[0]} is codes of a QuantizeLinear")
    nodes = {name: value.node or reader.held(value) for name, value in ends.items()}
    reader.graph.output(nodes if len(nodes) > 1 else next(iter(nodes.values())))
    graph = fx.GraphModule(reader.net, reader.graph, "ONNX")
    fused(graph)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph.eval()
