"""The engine beside torch on networks drawn at random over all its operators; GRAPHS=5000 draws as many, anew."""

import os
from collections import Counter
from copy import deepcopy

import pytest
import torch
from hypothesis import HealthCheck, assume, given, reject, settings
from torch import nn

from lab.core.batch import tensors
from lab.sparsebytenn import compiler, packed, segments
from lab.sparsebytenn.runtime import Engine

from . import foreign_steps, graphs, layer_steps, move_steps, tensor_steps

GRAPHS = int(os.environ.get("GRAPHS", "0"))
KINDS = (*layer_steps.KINDS, *tensor_steps.KINDS, *move_steps.KINDS)
EXACT = 1e-5  # of an output's largest number
ROUNDING = 2e-6  # where torch's own float32 is further from float64, the network enlarges roundings and measures none
drawing = settings(
    max_examples=GRAPHS or 200,
    derandomize=not GRAPHS,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")


def fresh(inputs):
    """The inputs, which a network may write into, once more."""
    return tuple(x.clone() for x in inputs)


def beside(net: nn.Module, inputs: tuple) -> tuple[object, object]:
    """What a network gives in float64, and in float32."""
    with torch.no_grad():
        exact = deepcopy(net).double()(*(x.double() for x in inputs))
        return exact, net(*fresh(inputs))


def apart(outputs: object, exact: object) -> float:
    """The largest difference of any two numbers, over the largest of their own output."""
    pairs = list(zip(tensors(outputs), tensors(exact), strict=True))
    assert [a.shape for a, _ in pairs] == [b.shape for _, b in pairs]
    return max(float((a - b).abs().max()) / (float(b.abs().max()) or 1.0) for a, b in pairs)


def form(tree: object) -> object:
    """How outputs hang together: dictionaries and lists without their tensors."""
    if isinstance(tree, dict):
        return {name: form(part) for name, part in tree.items()}
    return [form(part) for part in tree] if isinstance(tree, (list, tuple)) else None


def built(net: nn.Module, inputs: tuple) -> Engine:
    return Engine(packed.write(compiler.compile(net, inputs[0] if len(inputs) == 1 else inputs)))


@pytest.mark.slow
@drawing
@given(graphs.network(KINDS))
def test_any_network_of_the_engines_operators_is_torchs(drawn):
    net, inputs = drawn
    exact, single = beside(net, inputs)
    assume(apart(single, exact) < ROUNDING)
    outputs = built(net, inputs)(*fresh(inputs))
    assert form(outputs) == form(exact)
    assert apart(outputs, exact) < EXACT


@pytest.mark.slow
@settings(drawing, max_examples=(GRAPHS or 400) // 4)
@given(graphs.network((*KINDS, *foreign_steps.KINDS * 8)))
def test_what_the_engine_lacks_runs_in_torch_between_its_parts(drawn):
    net, inputs = drawn
    exact, single = beside(net, inputs)
    assume(apart(single, exact) < ROUNDING)
    try:
        in_parts = segments.segmented(net, inputs[0] if len(inputs) == 1 else inputs)
    except ValueError as error:
        assert "\n" not in str(error) and str(error).startswith("the engine has no layer of this network")
        reject()
    outputs = in_parts(*fresh(inputs))
    assert form(outputs) == form(exact)
    assert apart(outputs, exact) < EXACT


def kinds_of(count: int) -> tuple[Counter, Counter]:
    """How often each kind of step, and each property of a network, comes up in so many networks."""
    steps, properties = Counter(), Counter()

    @settings(drawing, max_examples=count, derandomize=True, database=None)
    @given(graphs.network(KINDS))
    def look(drawn):
        net, inputs = drawn
        reads = [i for _, _, reads in net.steps for i in reads]
        steps.update(net.kinds)
        properties.update({
            "a value read twice": len(set(reads)) < len(reads),
            "one step reads a value twice": any(len(set(r)) < len(r) for _, _, r in net.steps),
            "several outputs": len(net.outputs) > 1,
            "a dictionary": net.form == "dictionary",
            "two inputs": len(inputs) > 1,
        })  # fmt: skip

    look()
    return steps, properties


@pytest.mark.slow
def test_every_operator_is_drawn():
    """Each kind of step stands in some of 300 networks, and each property of a network in many."""
    steps, properties = kinds_of(300)
    assert {kind.__name__ for kind in KINDS} == set(steps)
    assert min(properties.values()) > 10
