"""PAMS beside its rivals on photographs: what bits cost, what knowledge transfer adds, which range is worth learning.

    python benchmarks/pams_accuracy.py photos --json data/pams/photos.json
    python benchmarks/pams_accuracy.py full --json data/pams/full.json
    python benchmarks/pams_accuracy.py edsr --device cuda --json data/pams/edsr.json
    python benchmarks/pams_accuracy.py rdn --device cuda --json data/pams/rdn.json
    python benchmarks/pams_accuracy.py transfer --json data/pams/transfer.json
    python benchmarks/pams_accuracy.py ranges --json data/pams/ranges.json

photos: the lab's small EDSR x2 on the photographs that scikit-image and scikit-learn ship. edsr, rdn: EDSR-baseline and
an RDN, learned from T91 and judged on Set5, see `set5.py`. The figure is how many dB a network is below its float
start. All rivals quantise the same tensors (placement `cadyq`), start from the same network and learn for as many steps
on the same batches at the same rates, on L1. 'not trained' has PAMS's ranges as calibrated; 'PAMS as drawn' has the
paper's own placement, `fig1`, which leaves sums in float. full: the small EDSR with every tensor on 8 bits;
onnxruntime's static quantisation, which does not train either, stands beside.

transfer: the small EDSR under knowledge transfer of several weights. `skt_pull` is the length of its gradient with
respect to the weights in percent of L1's, both of the trained network. ranges: weights and activations quantised apart.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from contest import Contest, Rival, main, placed
from ort_static import deployed
from pams import calibrate, calibrated
from set5 import LEARNED, NETS
from set5 import task as set5_task
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

import lab
from lab.core.quantisation import quantisers
from lab.core.quantisation.bn_folding import fold_batch_norms
from lab.core.quantisation.placement import QuantPoint, insert_quantisers, with_feature_output
from lab.core.task import Task
from lab.core.training import Stage, descend
from lab.pams import equations as eq
from lab.pams.outcome import PAMSOutcome

STEPS = 200
BITS = ("4 bits", "2 bits", "8 bits", "3 bits")
FULL = "8 bits, full"
SET5 = {"2 bits": (3e-4, 3e-3), "3 bits": (3e-4, 3e-3), "4 bits": (3e-4, 3e-3), "8 bits": (1e-4, 3e-3)}  # not tried
RATES = {  # of weights and alphas by net and bits, chosen for PAMS on seed 0; the rivals have the same
    "photos": {
        "2 bits": (3e-3, 3e-3), "3 bits": (1e-3, 3e-3), "4 bits": (1e-3, 3e-3), "8 bits": (1e-4, 3e-3),
        FULL: (1e-5, 3e-3),
    },
    "edsr": SET5,
    "rdn": SET5,
}  # fmt: skip
RIVALS: dict[str, tuple[Callable, Callable]] = {  # activations, weights
    "max-abs": (quantisers.MaxAbs, lambda bits, W: quantisers.MaxAbsWeight(bits)),
    "least squares": (quantisers.LeastSquares, lambda bits, W: quantisers.MaxAbsWeight(bits)),
    "DoReFa": (quantisers.MaxAbs, quantisers.DoReFaWeight),
    "PACT": (quantisers.PACT, quantisers.DoReFaWeight),
    "LSQ": (quantisers.LSQ, quantisers.LSQWeight),
}
STRONG = 1e5  # a weight of knowledge transfer beside the paper's 1000
STATIC = ("MinMax", "Entropy", "Percentile")
WEIGHTS_OF_TRANSFER = (0.0, STRONG, 1e6, 1e7)  # beside the paper's 1000
TRANSFER: dict[str, dict[str, Any]] = {  # what a budget of `transfer` changes of the recipe
    "2 bits": {"weight_bits": 2, "activation_bits": 2},
    "4 bits": {"weight_bits": 4, "activation_bits": 4},
    "2 bits, four times as long": {"weight_bits": 2, "activation_bits": 2, "steps": 4 * STEPS},
    "4 bits, random start": {"weight_bits": 4, "activation_bits": 4, "released": ("random_student",)},
}
APART = {"W2 A8": (2, 8), "W8 A2": (8, 2), "W4 A8": (4, 8), "W8 A4": (8, 4)}
JUDGED = 8  # batches that gradients are compared on


def on_photos(quick: bool, device: str = "cpu") -> Contest:
    return _accuracy("photos", quick, device)


def on_edsr(quick: bool, device: str = "cpu") -> Contest:
    return _accuracy("edsr", quick, device)


def on_rdn(quick: bool, device: str = "cpu") -> Contest:
    return _accuracy("rdn", quick, device)


def transfer(quick: bool, device: str = "cpu") -> Contest:
    """Weights of knowledge transfer by bits, length and start; the paper's is the subject."""
    rivals: dict[str, Rival] = {"PAMS": partial(_transferred, device, quick, lab.PAMS().skt)}
    rivals |= {f"transfer {w:g}": partial(_transferred, device, quick, w) for w in WEIGHTS_OF_TRANSFER}
    return Contest(
        name="pams-transfer",
        rivals=rivals,
        settings={"recipe": repr(recipe("photos", "4 bits")), "budgets": TRANSFER, "judged": JUDGED, "quick": quick},
        figure="lost",
        budgets=("2 bits",) if quick else tuple(TRANSFER),
        device=device,
    )


def ranges(quick: bool, device: str = "cpu") -> Contest:
    """Weights and activations with bits of their own, so that each shows what it loses."""
    rivals: dict[str, Rival] = {"PAMS": partial(_split, device, quick, "PAMS")}
    rivals |= {name: partial(_split, device, quick, name) for name in ("least squares", "max-abs", "LSQ")}
    return Contest(
        name="pams-ranges",
        rivals=rivals,
        settings={"recipe": repr(recipe("photos", "4 bits")), "budgets": APART, "judged": JUDGED, "quick": quick},
        figure="lost",
        budgets=tuple(APART)[:1] if quick else tuple(APART),
        device=device,
    )


def _accuracy(net: str, quick: bool, device: str) -> Contest:
    """Rivals by bits on one network."""
    make = partial(_cell, net, device, quick)
    rivals: dict[str, Rival] = {"PAMS": partial(make, partial(_pams, {}))}
    rivals["PAMS without transfer"] = partial(make, partial(_pams, {"skt": 0.0}))
    rivals[f"PAMS, transfer {STRONG:g}"] = partial(make, partial(_pams, {"skt": STRONG}))
    rivals["PAMS on the paper's grid"] = partial(make, partial(_pams, {"grid": "signed"}))
    rivals["PAMS as drawn"] = partial(make, partial(_pams, {"placement": "fig1"}))
    rivals |= {name: partial(make, partial(_trained, name)) for name in RIVALS}
    rivals["not trained"] = partial(make, _not_trained)
    return Contest(
        name=f"pams-{net}",
        rivals=rivals,
        settings={
            "recipes": {name: repr(recipe(net, name)) for name in BITS},
            "start": {} if net == "photos" else NETS[net] | LEARNED,
            "quick": quick,
        },
        figure="lost",
        budgets=("4 bits",) if quick else BITS,
        device=device,
    )


def full(quick: bool, device: str = "cpu") -> Contest:
    """Every tensor on 8 bits, as integer kernels need it, beside onnxruntime's tool."""
    make = partial(_cell, "photos", device, quick)
    rivals: dict[str, Rival] = {"PAMS": partial(make, partial(_pams, {}))}
    rivals["PAMS from the mean"] = partial(make, partial(_pams, {"statistic": "mean"}))
    rivals["PAMS without transfer"] = partial(make, partial(_pams, {"skt": 0.0}))
    rivals |= {name: partial(make, partial(_trained, name)) for name in ("max-abs", "LSQ")}
    rivals["not trained"] = partial(make, _not_trained)
    rivals |= {f"onnxruntime {method}": partial(make, partial(_static, method)) for method in STATIC}
    settings = {"recipe": repr(recipe("photos", FULL)), "quick": quick}
    return Contest(name="pams-full", rivals=rivals, settings=settings, figure="lost", budgets=(FULL,), device=device)


def recipe(net: str, budget: str) -> lab.PAMS:
    lr, alpha_lr = RATES[net][budget]
    bits = int(budget[0])
    recipe = lab.PAMS(weight_bits=bits, activation_bits=bits, steps=STEPS, lr=lr, alpha_lr=alpha_lr)
    return replace(recipe, placement="full", statistic="largest") if budget == FULL else recipe


def ground(net: str, folder: Path, device: str) -> Task:
    """The task of a contest, its network as it starts."""
    return _photos(device) if net == "photos" else set5_task(net, folder.parent, device)


@cache
def _photos(device: str) -> Task:
    return placed(lab.tasks.photos(2, patch=64, batch_size=4), device)


# -- rivals -----------------------------------------------------------------------------------------------------------


def _cell(
    net: str, device: str, quick: bool, rival: Callable, budget: str, seed: int, folder: Path
) -> tuple[nn.Module, dict[str, float]]:
    task, settings = ground(net, folder, device), recipe(net, budget)
    network, told = rival(task, replace(settings, steps=30) if quick else settings, seed)
    return network, lost(task, network, told)


def _transferred(
    device: str, quick: bool, weight: float, budget: str, seed: int, folder: Path
) -> tuple[nn.Module, dict[str, float]]:
    task, fields = ground("photos", folder, device), TRANSFER[budget]
    settings = replace(recipe("photos", f"{fields['weight_bits']} bits"), skt=weight, **fields)
    network, told = _pams({}, task, replace(settings, steps=30) if quick else settings, seed)
    return network, lost(task, network, told)


def _split(
    device: str, quick: bool, name: str, budget: str, seed: int, folder: Path
) -> tuple[nn.Module, dict[str, float]]:
    task, (w, a) = ground("photos", folder, device), APART[budget]
    settings = replace(
        recipe("photos", f"{min(w, a)} bits"), weight_bits=w, activation_bits=a, steps=30 if quick else STEPS
    )
    network, told = (_pams if name == "PAMS" else _trained)({} if name == "PAMS" else name, task, settings, seed)
    return network, lost(task, network, told)


def lost(task: Task, network: nn.Module, told: dict[str, float]) -> dict[str, float]:
    """dB below the float start, and dB, beside what else is told of a network."""
    psnr = told["psnr"] if "psnr" in told else task.measure(network)
    return {"lost": _start(task) - psnr, "psnr": psnr} | told


@cache
def _start(task: Task) -> float:
    return task.measure(task.model)


def _pams(fields: Mapping[str, Any], task: Task, settings: lab.PAMS, seed: int) -> tuple[nn.Module, dict[str, float]]:
    """The recipe with these fields changed, how hard transfer pulls in the end, and how far its alphas went."""
    outcome = replace(settings, **fields).run(task, seed=seed, progress=False)
    told = {"psnr": outcome.report["psnr"].after}
    return outcome.model, told | {"skt_pull": pull(task, outcome), "alpha_moved": alpha_moved(outcome)}


def _trained(name: str, task: Task, settings: lab.PAMS, seed: int) -> tuple[nn.Module, dict[str, float]]:
    return learned(task, settings, *RIVALS[name]), {}


def _not_trained(task: Task, settings: lab.PAMS, seed: int) -> tuple[nn.Module, dict[str, float]]:
    return calibrated(task.model, batches(task, settings.calibration), settings), {}


def _static(method: str, task: Task, settings: lab.PAMS, seed: int) -> tuple[nn.Module, dict[str, float]]:
    return deployed(task, batches(task, settings.calibration), method), {}


def batches(task: Task, count: int) -> list[Tensor]:
    """The small pictures of as many batches as PAMS calibrates on."""
    stream: Iterator[Any] = Stage(None, "batches", "benchmark").stream(task.batches)
    return [x for x, _ in islice(stream, count)]


def learned(task: Task, recipe: lab.PAMS, activation: Callable, weight: Callable) -> fx.GraphModule:
    """The task's network with another paper's quantisers at the recipe's placement, trained on L1 alone."""
    graph = fold_batch_norms(task.model, task.example)
    placement = recipe.place(graph)
    device = task.example.device  # type: ignore[union-attr]

    def quantiser(point: QuantPoint) -> nn.Module:
        return activation(8 if point.image else recipe.activation_bits, point.signed).to(device)

    def rounded(layer: nn.Module) -> nn.Module:
        made = weight(recipe.weight_bits, layer.weight).to(device)
        parametrize.register_parametrization(layer, "weight", made)
        return layer

    made = insert_quantisers(graph, placement, quantiser, rounded)
    named = [(name, p) for name, p in graph.named_parameters() if p.requires_grad]
    ranges = [p for name, p in named if name.endswith((".alpha", ".step"))]
    weights = [p for name, p in named if not name.endswith((".alpha", ".step"))]
    groups = [{"params": weights, "lr": recipe.lr}] + ([{"params": ranges, "lr": recipe.alpha_lr}] if ranges else [])
    adam = Adam(groups)
    stage = Stage(None, "rival", "benchmark", graph=graph, adam=adam)

    def terms(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return {"l1": eq.pixel_loss(graph(batch[0]), batch[1])}

    graph.train()
    calibrate(made, True)
    schedule = CosineAnnealingLR(adam, recipe.steps)
    for step in descend(terms, task.batches, adam, stage, steps=recipe.steps, schedule=schedule, progress=False):
        calibrate(made, step.index + 1 < recipe.calibration)
    return graph.eval()


# -- why --------------------------------------------------------------------------------------------------------------


def pull(task: Task, outcome: PAMSOutcome) -> float:
    """The gradient of Card (11), weighted as in the paper, in percent of L1's, with respect to all weights."""
    student = with_feature_output(outcome.model, outcome.placement.feature)
    teacher = with_feature_output(fold_batch_norms(task.model, task.example), outcome.placement.feature)
    weights = [p for name, p in student.named_parameters() if name.endswith("weight")]
    sums = [[torch.zeros_like(p) for p in weights] for _ in range(2)]
    for x, y in islice(iter(task.batches), JUDGED):
        sr, F_student = student(x)
        with torch.no_grad():
            F_teacher = teacher(x)[1]
        terms = eq.pixel_loss(sr, y), lab.PAMS().skt * eq.knowledge_transfer(F_student, F_teacher)
        for term, total in zip(terms, sums, strict=True):
            grads = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
            for part, grad in zip(total, grads, strict=True):
                part += 0 if grad is None else grad
    l1, skt = (float(torch.stack([part.square().sum() for part in total]).sum().sqrt()) for total in sums)
    return 100 * skt / l1


def alpha_moved(outcome: PAMSOutcome) -> float:
    """How far alphas ended from what they were calibrated to, percent, the mean of all."""
    steps, alphas = outcome.history["steps"], outcome.history["alphas"]
    first = alphas[int((steps >= outcome.recipe.calibration).nonzero()[0])]
    return 100 * float((alphas[-1] / first - 1).abs().mean())


if __name__ == "__main__":
    contests = {
        "photos": on_photos,
        "full": full,
        "edsr": on_edsr,
        "rdn": on_rdn,
        "transfer": transfer,
        "ranges": ranges,
    }
    main(contests, __doc__)
