"""Decoupling's claims where they can be seen, each beside its control: accuracy at an on-rate, paths that tell the
class and what the network loses without them, altered pictures, and time.

    python benchmarks/decoupling.py fashion [--quick] [--json data/decoupling/fashion.json] [--seeds 10,11,12,13,14]
    python benchmarks/decoupling.py fashion-altered | cifar | cifar-altered | losses | speed

`fashion` is ResNet-20 on Fashion-MNIST, `cifar` ResNet-56 on CIFAR-10 (where `../shared/data` is at hand). All rivals
start from the same trained network and take as many steps with the same batches, rates and momentum: dense; with gates
that are drawn at random for each picture, as many of a layer on; with as many filters of each layer, those of the
largest norms, on for all pictures. 'norms anew' is after batch norms have taken their statistics again from gates
without noise. 'lost specific' are the points that a class loses without its most specific filters, 22 % of all that
have gates. It stands beside 'lost as many used', without as many filters of the same layers that the class uses,
always-on ones among them, which is the fair control, and 'lost as many conditional', without as many that are on for
some pictures only.

`-altered` gives each detector the same pictures: it may learn from 1,000 clean ones and from 20 of each class altered
by BIM, and is judged on held-out ones that were read rightly, altered by BIM, by FGSM and PGD, which it has not seen
('unseen' is the worse of the two), and by an attack that imitates the path of its target ('adaptive' is the least over
two weights). 'forward' and 'backward' are passes a picture, 'sees' is 1 where attacks were learned from.

`losses` leaves losses out on the digits. `speed` trains a ResNet-18 and its gates on Fashion-MNIST enlarged to 64
pixels and times skipping and gating against the dense network, there and at 224 pixels, one picture, one thread.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import cache, lru_cache, partial
from hashlib import sha256
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from contest import Contest, main, placed
from decoupling_grounds import ATTACKED, CIFAR, KNOWN, Ground, cifar56, enlarged, enlarged_fashion, fashion
from detectors import DETECTORS, SETTINGS, Known, altered_pictures
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR

import lab
from lab.core import cost
from lab.core.task import Task
from lab.core.tasks import digits_data
from lab.core.training import Stage, descend, seeded
from lab.decoupling import detection, intervention, paths
from lab.decoupling.layers import changing
from lab.decoupling.outcome import DecouplingOutcome
from lab.decoupling.placement import insert_gates
from lab.decoupling.skipping import skipping

# The settings, chosen on seeds 0 to 2: see data/decoupling.
BATCH, CIFAR_BATCH = 32, 128
ON_FASHION = lab.Decoupling(steps=400, lr=0.03, lam_m=0.3, bias=1.5)
ON_CIFAR = lab.Decoupling(steps=1_500, lr=0.03, lam_m=0.15, bias=1.5)  # for a quicker processor, not tried
ON_RESNET18, DENSE_STEPS, DENSE_LR, SPEED_BATCH, SIZE = lab.Decoupling(steps=100, lr=0.05), 200, 0.02, 16, 64
QUICK = {"steps": 10, "lr": 0.1, "lam_m": 0.3, "bias": 0.5}  # gates open and close at once, wherever that leads
SPECIFIC = 150 / 672  # the share of the gated filters that is knocked out: 150 of ResNet-20's, chosen on the digits
ANEW = 40  # batches that batch norms are estimated on again
DRAWS = 2  # of the filters that a control knocks out
TIMED, FORMS = 8, ("skipped", "gated")  # pictures that are timed one by one, and what is timed beside the dense network


# -- the rivals ------------------------------------------------------------------------------------------------------


def decoupling(on: Ground, recipe: lab.Decoupling, judged: int, r: float, seed: int, folder: Path):
    """The subject: its own figures, those of its paths, and what the network loses without them."""
    outcome = decoupled_by(on, replace(recipe, r=r), seed, folder)
    known = outcome.paths([on.known])
    x, y = (part[:judged] for part in on.held_out)
    held_out = outcome.paths([(x, y)])
    apart, bits = paths.separation(held_out, seed=seed), paths.probe(known, held_out, seed=seed, progress=False)
    count = round(SPECIFIC * sum(site.filters for site in insert_gates(on.task.model, on.task.example).sites))
    lost = intervention.knock_out(
        outcome.decoupled, known, [(x, y)], count=count, draws=DRAWS, seed=seed, progress=False
    ).mean()
    rate = float(np.mean(on_rates(on.task, outcome, held_out)))
    return outcome.model, {
        **accuracy(on.task, outcome.model),
        "accuracy drop, norms anew": accuracy(on.task, norms_anew(on.task, outcome.model))["accuracy drop"],
        "on-rate": rate,
        "on-rate error": abs(rate - r),
        "macs ratio": outcome.report["macs"].ratio,
        "conditional": outcome.report["conditional filters"].after / outcome.report["gated filters"].before,
        "within": apart.within,
        "between": apart.between,
        "path p": apart.p,
        "bits told": float(bits.bits.mean()),
        "bits of shuffled labels": float(bits.shuffled.mean()),
        "lost specific": lost.own - lost.specific,
        "lost as many used": lost.own - lost["as many used"],
        "lost as many conditional": lost.own - lost["as many conditional"],
        "lost by the others": lost.others - lost["others specific"],
    }


def always_on(on: Ground, recipe: lab.Decoupling, r: float, seed: int, folder: Path):
    """Dense, trained as long."""
    model = on.task.copy_for(None)
    trained(on.task, model, recipe)
    return model, {**accuracy(on.task, model), "on-rate": 1.0}


def random_gates(on: Ground, recipe: lab.Decoupling, r: float, seed: int, folder: Path):
    """Gates that are drawn at random for each picture, in training and in use, as many of each layer on."""
    rates = on_rates(on.task, *judged_paths(on, replace(recipe, r=r), seed, folder))

    def drawn(share: float) -> Callable[[Tensor], Tensor]:
        return lambda z: (torch.rand_like(z).argsort(1).argsort(1) < round(share * z.shape[1])).to(z)

    return gated(on, recipe, [drawn(share) for share in rates], rates)


def static_filters(on: Ground, recipe: lab.Decoupling, r: float, seed: int, folder: Path):
    """As many filters of each layer, those of the largest L1 norms, on for all pictures."""
    rates = on_rates(on.task, *judged_paths(on, replace(recipe, r=r), seed, folder))
    sites = insert_gates(on.task.model, on.task.example).sites

    def fixed(layer: str, share: float) -> Callable[[Tensor], Tensor]:
        norms = on.task.model.get_submodule(layer).weight.detach().flatten(1).abs().sum(1)  # (C_l,)
        is_on = torch.zeros_like(norms).index_fill(0, norms.topk(round(share * len(norms))).indices, 1.0)
        return lambda z: is_on.to(z).expand_as(z)

    return gated(on, recipe, [fixed(site.layer, share) for site, share in zip(sites, rates, strict=True)], rates)


def gated(on: Ground, recipe: lab.Decoupling, changes: list[Callable[[Tensor], Tensor]], rates: list[float]):
    """A network whose gates do as they are told, trained as long."""
    decoupled = insert_gates(on.task.copy_for(None), on.task.example)
    by_gate = {site.gate: change for site, change in zip(decoupled.sites, changes, strict=True)}
    with changing(decoupled.model, by_gate):
        trained(on.task, decoupled.model, recipe)
        return decoupled.model, {**accuracy(on.task, decoupled.model), "on-rate": float(np.mean(rates))}


RIVALS = {
    "dense trained as long": always_on,
    "random gates": random_gates,
    "static largest norms": static_filters,
}


def trained(task: Task, model: nn.Module, recipe: lab.Decoupling) -> None:
    """The network with labels for as many steps, the optimiser and the rates those of the recipe."""
    optimiser = SGD(model.parameters(), recipe.lr, momentum=0.9, weight_decay=1e-4)
    schedule = MultiStepLR(optimiser, [round(share * recipe.steps) for share in recipe.milestones], 0.1)
    stage = Stage(None, "dense", "", model=model, optimiser=optimiser, schedule=schedule)
    model.train()
    fit = lambda batch: {"task": task.fit(model, batch)[0]}  # noqa: E731
    for _ in descend(fit, task.batches, optimiser, stage, steps=recipe.steps, schedule=schedule, progress=False):
        pass
    model.eval()


def accuracy(task: Task, model: nn.Module) -> dict[str, float]:
    """Accuracy in percent, and the points that it is below that of the network as it came."""
    with seeded(0):  # random gates draw
        after = task.measure(model)
    return {"accuracy": after, "accuracy drop": start(task) - after}


@torch.no_grad()
def norms_anew(task: Task, model: nn.Module) -> nn.Module:
    """A copy whose batch norms take their statistics from `ANEW` batches with the gates as in use, without noise."""
    model = deepcopy(model).eval()
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    for batch in islice(iter(task.batches), ANEW):
        model(task.inputs_of(batch))
    return model.eval()


@cache
def start(task: Task) -> float:
    """The accuracy of the network as it came."""
    return task.measure(task.model)


def decoupled_by(on: Ground, recipe: lab.Decoupling, seed: int, folder: Path) -> DecouplingOutcome:
    """What the recipe leaves with this seed: found beside the contests' folders, or made and left there."""
    name = sha256(f"{recipe} {on.task.name} {len(on.task.batches)}".encode()).hexdigest()[:12]
    path = folder.parent / "decoupling-outcomes" / f"{name}-{seed}"
    if not path.exists():
        recipe.run(on.task, seed=seed, progress=False).save(path)
    outcome = lab.load(path)
    outcome.model.to(on.device)
    return outcome


def judged_paths(on: Ground, recipe: lab.Decoupling, seed: int, folder: Path) -> tuple[DecouplingOutcome, paths.Paths]:
    outcome = decoupled_by(on, recipe, seed, folder)
    return outcome, outcome.paths([on.held_out], 1_000)


def on_rates(task: Task, outcome: DecouplingOutcome, held_out: paths.Paths) -> list[float]:
    """The on-rate of each layer, among all the filters that there were, those taken out included."""
    sites = insert_gates(task.model, task.example).sites
    return [float(bits.sum(1).mean()) / site.filters for bits, site in zip(held_out.split(), sites, strict=True)]


# -- altered pictures ------------------------------------------------------------------------------------------------


def detector(on: Ground, recipe: lab.Decoupling, judged: int, name: str, r: float, seed: int, folder: Path):
    """The areas under the curve of one detector, learned and judged on the pictures that all have."""
    known, clean, altered = shown(on, replace(recipe, r=r), judged, seed, folder)
    one = DETECTORS[name]
    score = one.learn(known)
    plain = score(clean)
    areas = {attack: detection.auc(plain, score(x)) for attack, x in altered.items()}
    adaptive = min(area for attack, area in areas.items() if attack.startswith("adaptive"))
    return known.decoupled.model, {
        "bim": areas["bim"], "fgsm": areas["fgsm"], "pgd": areas["pgd"], "unseen": min(areas["fgsm"], areas["pgd"]),
        "adaptive": adaptive, "forward": one.forward, "backward": one.backward, "sees": one.sees,
    }  # fmt: skip


@lru_cache(maxsize=1)
def shown(on: Ground, recipe: lab.Decoupling, judged: int, seed: int, folder: Path) -> tuple[Known, Tensor, dict]:
    """What detectors learn from and what they are judged on, with this seed."""
    outcome = decoupled_by(on, recipe, seed, folder)
    return altered_pictures(outcome.decoupled, on.known, on.held_out, on.pixels, judged, seed)


# -- losses, time ----------------------------------------------------------------------------------------------------


def without(changes: Mapping[str, float], recipe: lab.Decoupling, device: str, r: float, seed: int, folder: Path):
    """The recipe on the digits with some of its losses left out: what its paths tell about the class."""
    x, y, x_test, y_test = digits_data()
    outcome = replace(recipe, r=r, **changes).run(placed(lab.tasks.digits(), device), seed=seed, progress=False)
    known, held_out = outcome.paths([(x, y)]), outcome.paths([(x_test, y_test)])
    bits = paths.probe(known, held_out, seed=seed, progress=False)
    apart = paths.separation(held_out, permutations=99, seed=seed)
    return outcome.model, {
        "bits told": float(bits.bits.mean()),
        "bits of shuffled labels": float(bits.shuffled.mean()),
        "conditional filters": outcome.report["conditional filters"].after,
        "within": apart.within,
        "between": apart.between,
        "on-rate": outcome.report["on-rate"].after,
        "accuracy": outcome.report["accuracy"].after,
    }


def resnet18(
    recipe: lab.Decoupling, batch: int, dense_steps: int, size: int, count: int, device: str,
    r: float, seed: int, folder: Path,
):  # fmt: skip
    """A ResNet-18 trained on Fashion-MNIST enlarged to `size` pixels, then with gates; `count` pictures timed.

    Wherever it was trained, it is timed on the processor, one picture at a time, at that size and at 224 pixels.
    """
    task = enlarged_fashion(lab.nets.resnet18(classes=10), batch, size, device)
    trained(task, task.model, replace(recipe, steps=dense_steps, lr=DENSE_LR))
    outcome = replace(recipe, r=r).run(task, seed=seed, progress=False)
    figures = accuracy(task, outcome.model)
    dense, _ = task.copy_for("cpu"), outcome.model.to("cpu")  # in place: the outcome's own network
    images = fashion(batch, device).held_out[0][:count].cpu()
    on = outcome.paths([enlarged(images, size)])
    macs = outcome.decoupled.macs([torch.from_numpy(bits) for bits in on.split()])
    figures |= {
        "on-rate": float(np.mean(on_rates(task, outcome, on))),
        "macs ratio": float(cost.macs(dense, enlarged(images[:1], size)) / macs.mean()),
    }
    for side in (size, 224):
        ratios = np.median([timed(dense, outcome, enlarged(x, side)) for x in images.split(1)], axis=0)
        figures |= {f"latency ratio, {form}, {side} px": ratio for form, ratio in zip(FORMS, ratios, strict=True)}
    return outcome.model, figures


def timed(dense: nn.Module, outcome: DecouplingOutcome, x: Tensor) -> list[float]:
    """How many times as fast as the dense network each of FORMS is on a picture, in one run."""
    forms = {"skipped": skipping(outcome.decoupled, x), "gated": outcome.model}
    times = cost.latencies({"dense": dense, **forms}, x, repeats=15)
    return [times["dense"].over(times[form]) for form in FORMS]


# -- the contests ----------------------------------------------------------------------------------------------------


def claims(
    name: str, of: Callable[[], Ground], recipe: lab.Decoupling, batch: int, judged: int, device: str
) -> Contest:
    """Accuracy, paths and knock-out of the subject, and the accuracy of its rivals."""

    def on(make: Callable, *given) -> Callable:
        return lambda *cell: make(of(), recipe, *given, *cell)

    return Contest(
        name=f"decoupling-{name}",
        rivals={"Decoupling": on(decoupling, judged)} | {rival: on(make) for rival, make in RIVALS.items()},
        settings={
            "recipe": repr(recipe), "batch": batch, "judged": judged, "share knocked out": SPECIFIC, "draws": DRAWS,
            "anew": ANEW, "known": KNOWN, **({"pictures": CIFAR} if name == "cifar" else {}),
        },
        figure="accuracy drop",
        budgets=(0.6,),
        device=device,
    )  # fmt: skip


def telling(
    name: str, of: Callable[[], Ground], recipe: lab.Decoupling, batch: int, judged: int, device: str
) -> Contest:
    """All detectors on the network that the recipe leaves."""

    def on(one: str) -> Callable:
        return lambda *cell: detector(of(), recipe, judged, one, *cell)

    return Contest(
        name=f"decoupling-{name}-altered",
        rivals={one: on(one) for one in DETECTORS},
        settings={
            "recipe": repr(recipe), "batch": batch, "judged": judged, "known": KNOWN,
            "reach and bits": ATTACKED[name], **({"pictures": CIFAR} if name == "cifar" else {}), **SETTINGS,
        },
        figure="unseen",
        less=False,
        budgets=(0.6,),
        device=device,
    )  # fmt: skip


def on_fashion(quick: bool, device: str = "cpu", make: Callable = claims) -> Contest:
    recipe, batch = (replace(ON_FASHION, **QUICK), 32) if quick else (ON_FASHION, BATCH)
    judged = 300 if make is claims else 100
    return make("fashion", partial(fashion, batch, device), recipe, batch, 40 if quick else judged, device)


def on_cifar(quick: bool, device: str = "cpu", make: Callable = claims) -> Contest:
    recipe, batch = (replace(ON_CIFAR, **QUICK), 32) if quick else (ON_CIFAR, CIFAR_BATCH)
    judged = 1_000 if make is claims else 200
    return make("cifar", partial(cifar56, batch, device), recipe, batch, 40 if quick else judged, device)


def losses(quick: bool, device: str = "cpu") -> Contest:
    recipe = lab.Decoupling(steps=100 if quick else 500)
    parts = {"Decoupling": {}, "without mutual information": {"lam_m": 0.0}, "without agreement": {"lam_k": 0.0}}
    rivals = {name: partial(without, changes, recipe, device) for name, changes in parts.items()}
    settings = {"recipe": repr(recipe), "rivals": parts}
    return Contest(
        name="decoupling-losses", rivals=rivals, settings=settings, figure="bits told", less=False, budgets=(0.6,),
        device=device,
    )  # fmt: skip


def speed(quick: bool, device: str = "cpu") -> Contest:
    """The network has no trained start."""
    size, steps, dense_steps, batch = (32, 5, 10, 16) if quick else (SIZE, ON_RESNET18.steps, DENSE_STEPS, SPEED_BATCH)
    recipe, count = replace(ON_RESNET18, steps=steps), 2 if quick else TIMED
    settings = {
        "recipe": repr(recipe), "batch": batch, "dense steps": dense_steps, "dense lr": DENSE_LR, "size": size,
        "images": count,
    }  # fmt: skip
    of = {"Decoupling": partial(resnet18, recipe, batch, dense_steps, size, count, device)}
    return Contest(
        name="decoupling-speed", rivals=of, settings=settings, figure="accuracy drop", budgets=(0.6,), device=device
    )


CONTESTS: dict[str, Callable[[bool, str], Contest]] = {
    "fashion": on_fashion,
    "fashion-altered": partial(on_fashion, make=telling),
    "cifar": on_cifar,
    "cifar-altered": partial(on_cifar, make=telling),
    "losses": losses,
    "speed": speed,
}

if __name__ == "__main__":
    main(CONTESTS, __doc__)
