"""One network, one method: what was found in it, how exactly it is treated, or the one line that refuses it.

Every attempt is a function of a network, two pictures (2, 3, H, W) and `note`, which takes figures as they come, so
that an attempt that is cut short still says how far it got:

    structures  what the method treats, counted by kind
    reachable   the share of all parameters in weights that the method changes
    error       the largest difference of what must be equal, relative to the largest output
    onnx        the same of onnxruntime's output beside torch's; of quantised networks the share of unequal codes

'ONNX' is not one of the methods: it writes what surgery leaves as a float network, and runs it in onnxruntime.

What must be equal: for surgery and GAL the network without 30 % of its structures, drawn at random, and the network
with these masked; for Decoupling the network with every gate on, for SparseByteNN the one with its rows in a random
order, each beside the network as it came. What must differ does: a mask that changes no output proves nothing.
"""

import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, fx, nn

import lab
from lab.core import cost
from lab.core.graph import surgery
from lab.core.graph.channels import Channels
from lab.core.graph.groups import groups
from lab.core.graph.operators import CONVS, TRANSPOSED
from lab.core.graph.tracing import module_of, trace
from lab.core.onnx import export
from lab.core.onnx.runtime import as_input, session
from lab.core.task import Task
from lab.decoupling.placement import insert_gates
from lab.gal.structures import UNITS, fold, insert_masks, plan
from lab.sparsebytenn.rearrange import permute, survey

from .weights import Different, apart

SHARE = 0.3  # of the structures is removed
EXACT, PARITY = 1e-5, 1e-4  # what counts as equal, relative to the largest output: in torch, and beside onnxruntime
UNEQUAL = 0.01  # of all codes, the mean over the tensors, may lie one step apart: ties that two sums round otherwise
LARGE, QUICKEST = 100_000_000, ("max", "p99.9", "aciq", "als")  # parameters above which DQSS compares these alone
READERS = {"matmul", "bmm", "baddbmm", "einsum", "linear", "scaled_dot_product_attention"}

Note = Callable[..., None]


def task(model: nn.Module, x: Tensor, classifies: bool) -> Task:
    """The network on one batch of two pictures; labels only where there are classes."""
    batches = [(x, torch.arange(len(x)))] if classifies else [x]
    scored = lab.tasks.accuracy(batches) if classifies else lambda net: 0.0
    metric = {} if classifies else {"metric": "nothing", "unit": ""}
    return Task(model=model, batches=batches, score=scored, example=x[:1], name="registry", **metric)


def beside_onnx(model: nn.Module, x: Tensor) -> float:
    """How far onnxruntime's output is from the model's, when the model is written as a float network."""
    with tempfile.TemporaryDirectory() as folder:
        path = export.onnx(model, Path(folder) / "net.onnx", x[:1])
        ran = session(path)
        outputs = ran.run(None, {ran.get_inputs()[0].name: as_input(x)})
    with torch.no_grad():
        return apart([torch.from_numpy(part) for part in outputs], model(x))


def told(structures: Counter) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in structures.items())


# -- the attempts ------------------------------------------------------------------------------------------------------


def by_surgery(model: nn.Module, x: Tensor, classifies: bool, note: Note) -> None:
    """Remove 30 % of all channel groups' channels, drawn at random."""
    graph = trace(model, x[:1])
    channels = Channels(graph)
    kinds: Counter = Counter()
    for group in groups(channels):
        kinds[group.kind] += group.size
    note(structures=told(kinds))
    wanted = a_plan(model, x)
    smaller = surgery.remove(model, wanted, x[:1])
    note(reachable=changed(graph, smaller))
    with torch.no_grad():
        masked = _Masked(graph, channels, surgery.kept_channels(channels, wanted))
        compare(smaller, masked, model(x), x, note)


def by_onnx(model: nn.Module, x: Tensor, classifies: bool, note: Note) -> None:
    """Write what surgery leaves as a float network, and run it in onnxruntime."""
    smaller = surgery.remove(model, a_plan(model, x), x[:1])
    note(structures=f"{len(list(smaller.graph.nodes))} operations")
    note(onnx=beside_onnx(smaller, x))


def a_plan(model: nn.Module, x: Tensor) -> surgery.Plan:
    """A plan that removes 30 % of all channels, drawn at random."""
    scores = surgery.magnitude(model, x[:1])
    return surgery.plan_at({key: drawn(score) for key, score in scores.items()}, SHARE)


def drawn(score: Tensor) -> Tensor:
    """Random scores in place of these; equal ones stay equal, for they go together."""
    values, index = score.unique(return_inverse=True)
    return torch.rand(len(values), generator=torch.Generator().manual_seed(len(score)))[index]


def changed(model: nn.Module, smaller: nn.Module) -> float:
    """The share of the parameters in weights that became smaller, or went."""
    left = {name: p.shape for name, p in smaller.named_parameters()}
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    same = sum(n for name, n in sizes.items() if left.get(name) == model.get_parameter(name).shape)
    return 1 - same / sum(sizes.values())


def compare(smaller: nn.Module, masked: nn.Module, before: object, x: Tensor, note: Note) -> None:
    """Note how far the removed network is from the masked one, which must itself be far from the network as it came."""
    effect = apart(masked(x), before)
    if not effect > 100 * EXACT:
        raise Different(f"masking changed the output by {effect:.1g} only: nothing is proved")
    note(error=distance(smaller, masked, x))


def distance(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    """How far the outputs of two networks are apart; what single precision may have rounded so is tried in double."""
    error = apart(one(x), other(x))
    if error > EXACT:
        with suppress(RuntimeError):  # a network that asks for float32 within runs in single precision alone
            error = apart(deepcopy(one).double()(x.double()), deepcopy(other).double()(x.double()))
    return error


class _Masked(nn.Module):
    """A graph that runs under `_Masking`."""

    def __init__(self, graph: fx.GraphModule, channels: Channels, kept: dict) -> None:
        super().__init__()
        self.graph, self.channels, self.kept = graph, channels, kept

    def forward(self, x: Tensor) -> object:
        return _Masking(self.graph, self.channels, self.kept).run(x)


class _Masking(fx.Interpreter):
    """The network as it came, every layer reading zeros where a plan removes channels."""

    def __init__(self, graph: fx.GraphModule, channels: Channels, kept: dict) -> None:
        super().__init__(graph)
        self.channels, self.kept = channels, kept

    def run_node(self, n: fx.Node) -> object:
        plain = dict(self.env)
        if _reads(n):
            for source in n.all_input_nodes:
                self.env[source] = self._masked(source)
        output = super().run_node(n)
        self.env.update({node: plain[node] for node in n.all_input_nodes})
        return output

    def _masked(self, node: fx.Node) -> object:
        value, layout = self.env[node], self.channels.layouts.get(node, ())
        stays = self.channels.expand(layout, self.kept)
        if not isinstance(value, Tensor) or stays.all():
            return value
        axis = self.channels.axes[node]
        return value * stays.view(-1, *[1] * (value.dim() - 1 - axis)).to(value)


def _reads(node: fx.Node) -> bool:
    """Whether a node sums over channels: there a masked channel must be a zero."""
    module = module_of(node)
    if isinstance(module, (*CONVS, *TRANSPOSED)):
        return module.groups == 1
    name = getattr(node.target, "__name__", node.target)
    return isinstance(module, nn.Linear) or (node.op != "call_module" and name in READERS)


def by_gal(model: nn.Module, x: Tensor, classifies: bool, note: Note) -> None:
    """Close 30 % of all masks at random and remove them; then two steps of the recipe, from masks to a report."""
    masked = insert_masks(model, UNITS, x[:1])
    kinds: Counter = Counter()
    for structure in masked.structures:
        kinds[f"{structure.unit}{'es' if structure.unit == 'branch' else 's'}"] += structure.entries
    note(structures=told(kinds))
    generator = torch.Generator().manual_seed(0)
    first: set[str] = set()
    for structure, mask in zip(masked.structures, masked.masks(), strict=True):
        closed = torch.rand(mask.shape, generator=generator) < SHARE
        if structure.unit == "branch" and structure.reader not in first:  # a concatenation keeps one
            first.add(structure.reader)
            continue
        mask.data[closed] = 0
    with torch.no_grad():
        smaller = surgery.remove(fold(masked), plan(masked)[0], x[:1])
        note(reachable=changed(trace(model, x[:1]), smaller))
        compare(smaller, masked.model, model(x), x, note)
    recipe = lab.GAL(units=UNITS, steps=2, mask_every=1, finetune_steps=int(classifies), lam=1e-6)
    recipe.run(task(model, x, classifies), progress=False)


def by_decoupling(model: nn.Module, x: Tensor, classifies: bool, note: Note) -> None:
    """Gates behind every layer that can have one; all on, nothing changes. One step of the recipe."""
    decoupled = insert_gates(model, x[:1], bias=1e3)
    note(structures=f"{sum(site.filters for site in decoupled.sites)} filters in {len(decoupled.sites)} layers")
    names = [site.layer for site in decoupled.sites]
    gated = sum(p.numel() for name in names for p in decoupled.model.get_submodule(name).parameters())
    note(reachable=gated / cost.parameters(model))
    with torch.no_grad():
        note(error=distance(decoupled.model.eval(), model, x))
    lab.Decoupling(steps=1).run(task(model, x, classifies), progress=False)


def by_sparsebytenn(model: nn.Module, x: Tensor, classifies: bool, note: Note) -> None:
    """Rows of every class in a random order: the same function. Two steps of the recipe, blocks of four rows."""
    graph = trace(model, x[:1])
    ground = survey(graph, 4)
    note(structures=f"{len(ground.layers)} layers in blocks, {len(ground.classes)} classes of rows that move")
    weights = {name: graph.get_parameter(f"{name}.weight") for name in ground.layers}
    note(reachable=sum(w.numel() for w in weights.values()) / cost.parameters(model))
    generator = torch.Generator().manual_seed(0)
    sizes = {name: len(weights[layers[0]]) for name, layers in ground.classes.items()}
    orders = {name: torch.randperm(size, generator=generator) for name, size in sizes.items()}
    with torch.no_grad():
        note(error=distance(permute(model, orders, x[:1]), model, x))
    recipe = lab.SparseByteNN(steps=2, regroup_every=1, search="sort")
    outcome = recipe.run(task(model, x, classifies), progress=False)
    if "packed bytes" in outcome.report:
        note(extra="runs in the engine")


def by_dqss(model: nn.Module, x: Tensor, classifies: bool, note: Note) -> None:
    """Search two steps, keep, export, and compare onnxruntime's codes with torch's, tensor by tensor.

    The search is the paper's, all strategies and arg-max: the safe way's thousand runs of the network would be spent on
    logits that two steps on two pictures have hardly moved. Of large networks the quickest strategies are compared.
    """
    recipe = lab.DQSS(algorithm="dqss", weight_bits=8, activation_bits=8, placement="full", steps=2, calibration=2)
    if cost.parameters(model) > LARGE or x.shape[-1] > 128:
        recipe = replace(recipe, candidates=QUICKEST)
        note(extra=f"of {len(QUICKEST)} strategies")
    quantised(recipe.run(task(model, x, classifies), progress=False), model, note)


def by_pams(model: nn.Module, x: Tensor, classifies: bool, note: Note) -> None:
    """Two steps under the teacher, exported and compared likewise; networks that enlarge pictures."""
    recipe = lab.PAMS(placement="full", steps=2, calibration=1)
    quantised(recipe.run(task(model, x, classifies), progress=False), model, note)


def quantised(outcome: object, model: nn.Module, note: Note) -> None:
    """What of a quantised outcome is in the registry: layers, weights reached, parity of codes, integer layers."""
    fusion = outcome.fusion()
    layers = [row.layer for row in fusion.rows]
    note(structures=f"{len(layers)} layers, {round(100 * fusion.share)} % of them on integers")
    with tempfile.TemporaryDirectory() as folder:
        outcome.export(Path(folder) / "net.onnx")
    rows = outcome.parity()
    steps, unequal = max(row.steps for row in rows), sum(row.unequal for row in rows) / len(rows)
    note(onnx=unequal, steps=steps)
    weights = {name: p for name, p in outcome.model.named_parameters()}
    note(reachable=sum(p.numel() for p in weights.values() if p.dim() > 1) / cost.parameters(model))
    if steps > 1 or unequal > UNEQUAL:
        raise Different(f"onnxruntime's codes are up to {steps} steps from torch's, {unequal:.1%} of them unequal")


def by_torch_pruning(model: nn.Module, x: Tensor, classifies: bool, note: Note) -> None:
    """Torch-Pruning: 30 % of each group, smallest weights first; does it run, and equal the masked network?"""
    from .torch_pruning import pruned_and_masked

    smaller, masked = pruned_and_masked(model, x, SHARE)
    note(reachable=changed(model, smaller), structures="runs after pruning")
    with torch.no_grad():
        compare(smaller, masked, model(x), x, note)


METHODS: dict[str, Callable[[nn.Module, Tensor, bool, Note], None]] = {
    "surgery": by_surgery,
    "ONNX": by_onnx,
    "GAL": by_gal,
    "Decoupling": by_decoupling,
    "SparseByteNN": by_sparsebytenn,
    "DQSS": by_dqss,
    "PAMS": by_pams,
    "Torch-Pruning": by_torch_pruning,
}


def attempt(method: str, model: nn.Module, x: Tensor, classifies: bool, note: Note) -> None:
    """Try one method on one network; raises `Different` where what must be equal is not."""
    figures: dict[str, object] = {}

    def both(**more: object) -> None:
        figures.update(more)
        note(**more)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        METHODS[method](model, x, classifies, both)
    for name, most in (("error", EXACT), ("onnx", PARITY if method == "ONNX" else UNEQUAL)):
        value = figures.get(name)
        if value is not None and not value <= most:
            who = "the removed and the masked network" if name == "error" else "torch and onnxruntime"
            raise Different(f"{who} differ by {value:.1g} of the largest output")
