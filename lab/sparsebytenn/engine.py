"""A network in the engine: compiled, measured, held to what torch answers."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.batch import Example, tensors
from ..core.graph.tracing import outputs_of
from ..core.models import unmasked
from ..core.onnx import reading
from . import codes, compiler, int8, meeting, packed, segments, tuning
from .lowering.builder import LacksError
from .runtime import Engine, race

TOLERANCE = 1e-3  # of the largest number: sums of many terms in another order lie well within it
ROUNDED = 1 / 32  # of it, in the mean, where a network rounds: between two codes a sum's last bit decides for a step


def compile(
    model: nn.Module | str | Path,
    example: Example,
    *,
    strict: bool = False,
    dense: bool = False,
    measure: bool = True,
    rearrange: bool = True,
    interleaved: bool = False,
    calibrate: torch.Tensor | None = None,
) -> Any:
    """A network in the engine, whatever made its zeros: an `Engine`, or `Segments` where the engine has a part of it.

    model: a network of torch, or the path of an ONNX file, which needs the extra `export`. example: one input,
    (1, ...); its shapes are those that the engine takes. strict: raise a ValueError that names all that the engine
    lacks instead of leaving it to torch. dense: keep the zeros, as the baseline of the same kernels.
    measure: take each product in the form that is fastest on this machine, which takes some seconds, else in the form
    that usually is. rearrange: look for an order of each layer's rows in which zeros that stand by themselves meet in
    blocks of 4 rows x 1 column, which takes seconds for large networks with such zeros and none for others; the profile
    says what that gained, or why rows stayed. interleaved: pictures (H, W, C). calibrate: images (N, ...): products run
    in int8 over the ranges that these have; rows stay. An answer that is not torch's is a ValueError.

    Zeros may come from anywhere: masks of torch.nn.utils.prune or its parametrizations are multiplied in, a file's
    sparse initialisers are read, channels that were cut out (Torch-Pruning) are a smaller network. What is quantised
    already, as an ONNX file with QuantizeLinear, modules that call torch.fake_quantize_per_tensor_affine or the lab's
    quantisers, runs on its grids: products in int8 where inputs and weights lie on grids of 8 bits, all else in fp32.
    """
    given = reading.module(model, example) if isinstance(model, (str, Path)) else unmasked(model)
    model = codes.with_grids(given)
    searches = rearrange and not dense and calibrate is None
    arranged = meeting.met(model, example) if searches else meeting.Met(model)

    def form(network: packed.Network) -> packed.Network:
        network = arranged.described(tuning.tuned(network) if measure else network)
        return compiler.densified(network) if dense else network

    made: Engine | segments.Segments
    try:
        network = compiler.compile(arranged.model, example, interleaved=interleaved)
    except LacksError:
        if strict or interleaved or calibrate is not None:
            raise
        made = segments.segmented(arranged.model, example, form)
    else:
        network = network if calibrate is None else int8.quantised(network, calibrate)
        made = Engine(packed.write(form(network)))
    if calibrate is None:
        _validate(made, given, example, interleaved)
    return made


def with_zeros(sparse: Engine) -> Engine:
    """The same network with its zeros stored and multiplied: the dense baseline of the same kernels."""
    return Engine(packed.write(compiler.densified(sparse.network)))


def _validate(made: Any, model: nn.Module, example: Example, interleaved: bool) -> None:
    """Hold what was made to its network, on two pictures drawn for the example's shapes; a ValueError in one line."""
    g = torch.Generator().manual_seed(0)
    pairs = [torch.cat([_noise(x, g), _noise(x, g)]) for x in tensors(example)]
    net = deepcopy(model).float().cpu()
    try:
        exact = outputs_of(net, tuple(pairs))
    except RuntimeError:  # a network that takes one picture at a time
        pairs = [x[:1] for x in pairs]
        exact = outputs_of(net, tuple(pairs))
    given = [x.permute(0, 2, 3, 1).contiguous() if interleaved else x for x in pairs]
    rounds = _rounds(made)
    for y, z in zip(tensors(made(*given)), (z.float() for z in exact), strict=True):
        same = (y == z) | (y.isnan() & z.isnan())  # a NaN of torch's is its answer as well
        gaps, size = torch.where(same, 0.0, (y - z).abs()), float(torch.where(z.isfinite(), z, 0.0).abs().max())
        apart = float(gaps.max())
        is_near = float(gaps.mean()) <= ROUNDED * size if rounds else apart <= TOLERANCE * size
        if y.shape != z.shape or not is_near:
            raise ValueError(
                f"the engine answers otherwise than torch, by {apart:.3g} of {size:.3g}: it computes picture by "
                "picture, so no answer may depend on the others of a batch"
            )


def _rounds(made: Any) -> bool:
    """Whether an engine, or a part of a network in parts, rounds to grids."""
    engines = [made] if isinstance(made, Engine) else [part.engine for where, part in made.parts() if where == "engine"]
    return any(op.act == "round" or op.int8 is not None for engine in engines for op in engine.network.ops)


def _noise(x: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Normal numbers in the place of an example's real ones."""
    return torch.randn(x.shape, generator=g) if x.is_floating_point() else x.cpu()


__all__ = ["Engine", "compile", "race"]
