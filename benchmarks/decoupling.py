"""Decoupling's claims on the digits, each beside its control: accuracy, on-rate, what paths tell, whether they matter,
whether they give altered pictures away, and what they save.

    python benchmarks/decoupling.py [--quick] [--json FILE] [--seeds 10,11,12]

For each seed ResNet-20 is decoupled (25 s) and compared with the same network trained on for as many steps without
gates. Paths are learned on the 1,297 training pictures; probes, likeness, interventions and detection are judged on
the 500 held-out ones. `knockout_ratio` sets a class's most specific filters against as many conditional filters of
the same layers at random; `knockout_ratio_used` against as many filters of the same layers that the class uses,
always-on ones among them. Detectors learn from `per_class` training pictures of each class and their BIM versions,
and are judged on held-out pictures altered by BIM, by attacks that they have not seen (`attack_auc_unseen` is the
worse of FGSM and PGD), and by an adaptive attack that imitates the target's path; only misread pictures count, and
`attack_auc` is that of a random forest from 50 pictures a class. Latency: one picture, one thread; on ResNet-18 and
VGG-16 with controllers drawn at random to the papers' keep ratios, since time does not ask which filters are on.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas
import torch
from torch import nn
from tqdm.auto import tqdm

import lab
from lab.core import cost
from lab.core.finetune import finetune
from lab.core.kernels import isa_name
from lab.core.machine import machine
from lab.core.tasks import digits_data
from lab.core.training import seeded
from lab.decoupling import attacks, detection, intervention, paths
from lab.decoupling.layers import gates
from lab.decoupling.placement import insert_gates
from lab.decoupling.skipping import skipping

FILTERS = 150  # knocked out: a quarter of ResNet-20's gated filters; chosen with seed 0
ALTER = {"eps": 0.2, "low": -0.5, "high": 0.5}  # pixels lie in [-0.5, 0.5]
STEPS = {"step": 0.04, "steps": 10}
WEIGHTS = (1.0, 10.0, 100.0)  # of the path in the adaptive attack
PER_CLASS = (1, 5, 10, 50)  # training pictures of each class that a detector learns from
ONE = 0.2  # points: one held-out picture, the least that a control is taken to lose
FIGURES = (
    "accuracy_drop", "on_rate_error", "macs_ratio", "probe_margin", "path_p", "attack_auc", "attack_auc_unseen",
    "attack_auc_adaptive", "auc_max_softmax", "auc_mahalanobis", "click_ms",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed and no controls: under two minutes")
    parser.add_argument("--json", type=Path, help="write all figures, settings, seeds and the machine here")
    parser.add_argument("--seeds", default="10,11,12", help="none of which was used to choose the settings")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in options.seeds.split(",")][: 1 if options.quick else None]
    rows, detectors = [], []
    for seed in tqdm(seeds, desc="seeds"):
        row, scores = judged(lab.Decoupling(), seed, options.quick)
        rows.append(row)
        detectors += scores
    controls = [] if options.quick else [row for seed in tqdm(seeds, desc="controls") for row in ablations(seed)]
    speed = list(latencies(quick=options.quick))
    table = pandas.DataFrame(rows)
    figures = summary(table)
    print(f"{lab.Decoupling()}\nseeds {seeds}; one thread of {machine()['processor']} ({isa_name()})")
    for part in (rows, controls, detectors, speed):
        if part:
            print(pandas.DataFrame(part).round(3).to_string(index=False), end="\n\n")
    print(json.dumps(figures, indent=1))
    if options.json:
        parts = {"rows": rows, "controls": controls, "detectors": detectors, "speed": speed}
        settings = {"recipe": repr(lab.Decoupling()), "attacks": {**ALTER, **STEPS}, "filters knocked out": FILTERS}
        report = {"figures": figures, **parts, "settings": settings, "seeds": seeds, "machine": machine()}
        options.json.write_text(json.dumps(report, indent=1, default=float) + "\n")


def summary(table: pandas.DataFrame) -> dict[str, float]:
    """Means over seeds with their range; ratios of points lost are ratios of means."""
    mean, low, high = table.mean(), table.min(), table.max()
    figures = {name: float(mean[name]) for name in FIGURES}
    figures["knockout_ratio"] = float(mean.lost_specific / max(mean.lost_random, ONE))
    figures["knockout_ratio_used"] = float(mean.lost_specific / max(mean.lost_random_used, ONE))
    return figures | {f"{n}_{end}": float(v[n]) for n in FIGURES for end, v in (("min", low), ("max", high))}


def judged(recipe: lab.Decoupling, seed: int, quick: bool) -> tuple[dict, list[dict]]:
    """All figures of one seed, and a row for each detector."""
    task = lab.tasks.digits()
    x, y, x_held_out, y_held_out = digits_data()
    outcome = recipe.run(task, seed=seed, progress=False)
    train, held_out = outcome.paths([(x, y)]), outcome.paths([(x_held_out, y_held_out)])
    bits = paths.probe(train, held_out, seed=seed)
    behind = bits[[not name.startswith("layer1") for name in bits.index]]
    apart = paths.separation(held_out, seed=seed)
    lost = knocked_out(outcome, train, held_out_batches(), seed, draws=2 if quick else 5)
    scores = list(detection_rows(outcome, train, seed, quick))
    best = pandas.DataFrame(scores)
    main_one = best[(best.detector == "random forest") & (best.per_class == PER_CLASS[-1])].iloc[0]
    click = clicked(outcome)
    row = {
        "seed": seed,
        "accuracy": outcome.report["accuracy"].after,
        "accuracy_drop": trained_on(task, recipe, seed) - outcome.report["accuracy"].after,
        "on_rate": outcome.report["on-rate"].after,
        "on_rate_error": abs(on_rate(outcome, held_out) - recipe.r),
        "macs_ratio": outcome.report["macs"].ratio,
        "random_gates": randomly_gated(outcome, held_out, seed),
        "probe_margin": float((behind.bits - behind.shuffled).min()),
        "within": apart.within, "between": apart.between, "path_p": apart.p,
        **lost,
        "attack_auc": main_one.bim, "attack_auc_unseen": min(main_one.fgsm, main_one.pgd),
        "attack_auc_adaptive": main_one.adaptive,
        "auc_max_softmax": float(best[best.detector == "max softmax"].bim.iloc[0]),
        "auc_mahalanobis": float(best[best.detector == "mahalanobis"].bim.iloc[0]),
        "click_ms": click,
    }  # fmt: skip
    return row, [{"seed": seed, **score} for score in scores]


def held_out_batches() -> list:
    _, _, x, y = digits_data()
    return [(x, y)]


def trained_on(task: lab.Task, recipe: lab.Decoupling, seed: int) -> float:
    """The accuracy of the network as it came, trained on for as many steps at the same rate."""
    model = lab.tasks.digits().model
    with seeded(seed):
        finetune(task, model, steps=recipe.steps, lr=recipe.lr, progress=False)
    return task.measure(model)


def on_rate(outcome, held_out: paths.Paths) -> float:
    """The mean on-rate of pictures among all the filters that there were, those taken out included."""
    sites = insert_gates(lab.tasks.digits().model, lab.tasks.digits().example).sites
    rates = [bits.mean() * bits.shape[1] / site.filters for bits, site in zip(held_out.split(), sites, strict=True)]
    return float(np.mean(rates))


def randomly_gated(outcome, held_out: paths.Paths, seed: int) -> float:
    """The control of gates: the accuracy with as many filters of each layer on, drawn at random for each picture."""
    generator = torch.Generator().manual_seed(seed)

    def shuffle(z: torch.Tensor) -> torch.Tensor:
        return z.gather(1, torch.rand(z.shape, generator=generator).argsort(1))

    with intervention.changing(outcome.model, {name: shuffle for name in gates(outcome.model)}):
        return outcome_accuracy(outcome)


def outcome_accuracy(outcome) -> float:
    return lab.tasks.digits().measure(outcome.model)


def knocked_out(outcome, train: paths.Paths, batches: list, seed: int, draws: int) -> dict[str, float]:
    """Points of accuracy that a class loses without its most specific filters, and without random ones."""
    table = intervention.knock_out(outcome.decoupled, train, batches, count=FILTERS, draws=draws, seed=seed).mean()
    specific, random, used = (table.own - table[name] for name in ("specific", "random", "random used"))
    return {
        "lost_specific": specific, "lost_random": random, "lost_random_used": used,
        "lost_others": table.others - table["others specific"],
    }  # fmt: skip


# -- altered pictures ------------------------------------------------------------------------------------------------


def detection_rows(outcome, train: paths.Paths, seed: int, quick: bool) -> Iterator[dict]:
    """AUC of each detector against each attack on held-out pictures."""
    x, y, x_test, y_test = digits_data()
    altered = altered_pictures(outcome, train, x_test, y_test, seed)
    success = {f"{name} misread": float(attack.misread.float().mean()) for name, attack in altered.items()}
    with seeded(seed):
        learn = few_of_each(y, PER_CLASS[-1])
        shown = attacks.bim(outcome.model, x[learn], y[learn], other_class(y[learn]), **ALTER, **STEPS)
    for kind in ("random forest",) if quick else detection.CLASSIFIERS:
        for n in PER_CLASS[-1:] if quick else PER_CLASS:
            few = few_of_each(y[learn], n)
            detector = detection.detector(
                outcome.decoupled, train, x[learn][few], shown.x[few][shown.misread[few]], classifier=kind, seed=seed
            )
            yield {"detector": kind, "per_class": n, **aucs(detector.score, x_test, altered), **success}
    baseline = detection.mahalanobis(outcome.model, x, y)
    yield {
        "detector": "max softmax", "per_class": 0,
        **aucs(lambda z: detection.max_softmax(outcome.model, z), x_test, altered), **success,
    }  # fmt: skip
    yield {
        "detector": "mahalanobis", "per_class": 0,
        **aucs(lambda z: baseline.score(outcome.model, z), x_test, altered), **success,
    }  # fmt: skip


def altered_pictures(outcome, train: paths.Paths, x: torch.Tensor, y: torch.Tensor, seed: int) -> dict:
    """Each attack on the same pictures; the adaptive one with each weight of the path."""
    typical = torch.from_numpy(paths.class_paths(train)).float()
    with seeded(seed):
        target = other_class(y)
        altered = {
            "bim": attacks.bim(outcome.model, x, y, target, **ALTER, **STEPS),
            "fgsm": attacks.fgsm(outcome.model, x, y, **ALTER),
            "pgd": attacks.pgd(outcome.model, x, y, **ALTER, **STEPS),
        }
        for weight in WEIGHTS:
            altered[f"adaptive {weight:g}"] = attacks.adaptive(
                outcome.decoupled, x, y, target, typical, weight=weight, **ALTER, **STEPS
            )
    return altered


def aucs(score, clean: torch.Tensor, altered: dict) -> dict[str, float]:
    """The AUC against each attack; `adaptive` is the lowest over the weights that the attacker may choose."""
    plain = score(clean)
    by_attack = {name: detection.auc(plain, score(attack.x[attack.misread])) for name, attack in altered.items()}
    return {**by_attack, "adaptive": min(value for name, value in by_attack.items() if name.startswith("adaptive"))}


def few_of_each(y: torch.Tensor, count: int) -> torch.Tensor:
    """The indices of the first `count` pictures of each class."""
    return torch.cat([(y == label).nonzero().flatten()[:count] for label in y.unique()])


def other_class(y: torch.Tensor) -> torch.Tensor:
    """A class that each picture does not have, at random."""
    return (y + torch.randint(1, 10, y.shape)) % 10


# -- controls, time --------------------------------------------------------------------------------------------------


def ablations(seed: int) -> Iterator[dict]:
    """The recipe without one of its losses, and with the encodings told about shuffled labels."""
    x, y, x_test, y_test = digits_data()
    for name, recipe in (
        ("whole", lab.Decoupling()), ("lam_m=0", lab.Decoupling(lam_m=0)), ("lam_k=0", lab.Decoupling(lam_k=0)),
    ):  # fmt: skip
        outcome = recipe.run(seed=seed, progress=False)
        train, held_out = outcome.paths([(x, y)]), outcome.paths([(x_test, y_test)])
        bits, apart = paths.probe(train, held_out, seed=seed), paths.separation(held_out, permutations=99, seed=seed)
        yield {
            "control": name, "seed": seed, "accuracy": outcome.report["accuracy"].after,
            "on_rate": outcome.report["on-rate"].after, "conditional": outcome.report["conditional filters"].after,
            "bits told": bits.bits.mean(), "shuffled": bits.shuffled.mean(), "within": apart.within,
            "between": apart.between,
        }  # fmt: skip


def latencies(quick: bool) -> Iterator[dict]:
    """Multiply-adds in theory and time measured, dense against gated against skipped."""
    shapes = [("resnet20 8 x 8", lab.nets.resnet_cifar(20, channels=1), (1, 1, 8, 8), 0.6)]
    if not quick:
        shapes.append(("resnet18 224 x 224", lab.nets.resnet18(), (1, 3, 224, 224), 0.6))
        shapes.append(("vgg16 224 x 224", lab.nets.vgg16(), (1, 3, 224, 224), 0.5))
    for name, net, shape, keep in shapes:
        example = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        decoupled = insert_gates(net.eval(), example)
        with seeded(0):
            draw_encodings(decoupled.model, keep)
        decoupled.model.eval()
        on = paths.record(decoupled, [example])
        macs = float(decoupled.macs([torch.from_numpy(bits) for bits in on.split()])[0])
        forms = {"dense": net, "gated": decoupled.model, "skipped": skipping(decoupled, example)}
        timed = cost.latencies(forms, example, repeats=100 if shape[-1] < 100 else 15)
        yield {
            "network": name, "on-rate": on.on_rate(), "macs ratio": decoupled.dense / macs,
            "dense ms": timed["dense"].median, "gated ratio": timed["dense"].over(timed["gated"]),
            "skipped ratio": timed["dense"].over(timed["skipped"]),
        }  # fmt: skip


def draw_encodings(model: nn.Module, keep: float) -> None:
    """Controllers that turn a random share `keep` of the filters on, whatever they see."""
    for gate in gates(model).values():
        bias = gate.controller.fc2.bias
        nn.init.zeros_(gate.controller.fc2.weight)
        off = torch.randperm(len(bias))[: round((1 - keep) * len(bias))]
        bias.data = torch.ones_like(bias).index_fill(0, off, -1.0)


def clicked(outcome) -> float:
    """Milliseconds from a click on a filter to the new picture, the median of 20 in the last layer."""
    explorer = lab.view(outcome)
    times = []
    for k in range(1, 21):
        start = time.perf_counter()
        explorer.set(filter=k)
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times))


if __name__ == "__main__":
    main()
