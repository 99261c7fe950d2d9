"""The exercises: their answers hold against the lab, wrong ones get the hint that fits, and no hint gives it away."""

import random
import re
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

import lab
from lab.course.checking import EXERCISES

CASES = [(name, number) for name, exercises in EXERCISES.items() for number in range(1, len(exercises) + 1)]
NUMBERS = [case for case in CASES if case != ("chains", 1)]


def correct(name, number):
    return EXERCISES[name][number - 1].correct


def gal_mask():
    y = torch.tensor([0.02]) - 0.1 * 0.1
    return lab.gal.equations.shrink(y, 0.1 * 0.07).item()


def gal_blocks():
    gone = [f"layer1.{i}.bn2" for i in range(1, 7)] + [f"layer2.{i}.bn2" for i in range(1, 5)]
    image = torch.zeros(1, 3, 32, 32)
    cut = lab.surgery.remove(lab.nets.resnet_cifar(56), lab.surgery.Plan(blocks=tuple(gone)), image)
    return lab.cost.macs(cut, image)


def gated_ratio():
    gated = lab.decoupling.placement.insert_gates(lab.nets.resnet18().eval(), torch.zeros(1, 3, 224, 224))
    on = [torch.full((1, site.filters), 0.6) for site in gated.sites]
    return (gated.dense / gated.macs(on)).item()


def first_convolution():
    net = torch.nn.Conv2d(1, 16, 3, padding=1)
    return lab.cost.macs(net, torch.zeros(1, 1, 8, 8))


def path_cost():
    return lab.cost.macs(torch.nn.Conv2d(32, 96, 3, padding=1), torch.zeros(1, 32, 14, 14))


def pointwise_bound():
    net = lab.nets.mobilenet_v1()
    spent = lab.cost.layer_macs(net, torch.zeros(1, 3, 224, 224))
    pointwise = sum(count for layer, count in spent.items() if layer.endswith(".3"))
    return sum(spent.values()) / (sum(spent.values()) - pointwise / 2)


def mask_entries():
    vit = lab.nets.vit(size=8, patch=4, width=48, depth=3, heads=6, ratio=4)
    masked = lab.gal.structures.insert_masks(vit.eval(), ("channel",), torch.zeros(1, 1, 8, 8))
    return sum(structure.entries for structure in masked.structures)


def all_ground():
    labels = torch.tensor([0] * 89 + [1, 1, 2, 3, 4] + [-100] * 6)[None, None]  # (1, 1, 100) pixels
    output = torch.zeros(1, 5, 1, 100)
    output[:, 0] = 1
    return lab.tasks.mean_iou([(output, labels)])(torch.nn.Identity())


def selectivity():
    means = np.repeat([0.9, 0.1, 0.2, 0.3], 5)[:, None]
    return lab.lens.selectivity(
        torch.nn.Sequential(torch.nn.Identity()), "0", [(torch.tensor(means), torch.arange(4).repeat_interleave(5))],
        progress=False,
    )["index"][0]  # fmt: skip


def mixture():
    errors = lab.dqss.equations.error_products([torch.tensor([0.3]), torch.tensor([-0.2])], torch.tensor([0.0]))
    return lab.dqss.equations.loss_of_mean(torch.tensor([0.5, 0.5]), errors).item()


def better_of_two():
    r = torch.tensor([0.0, 2.0])
    return lab.acenas.equations.lambda_gradient(torch.zeros(2), r, torch.tensor([1.0, 2.0]))[1].item()


MEASURED = {
    ("tour", 1): first_convolution,
    ("gal", 1): gal_mask,
    ("gal", 2): gal_blocks,
    ("decoupling", 1): path_cost,
    ("decoupling", 2): gated_ratio,
    ("pams", 1): lambda: lab.pams.equations.quantise(torch.tensor([0.4]), torch.tensor([1.0]), 7).item(),
    ("pams", 2): lambda: lab.pams.equations.equivalent_parameters(1_517_571, 1_181_696, 4),
    ("dqss", 1): lambda: lab.dqss.equations.space_size([25] * 32),
    ("dqss", 2): mixture,
    ("sparsebytenn", 2): pointwise_bound,
    ("foldgpt", 1): lambda: lab.foldgpt.equations.parameters(
        6_738_415_616, 202_383_360, 8_192, R=4, groups=(2,) * 4
    ),
    ("foldgpt", 2): lambda: lab.foldgpt.equations.gate(torch.tensor([0.3]), 0.1).item(),
    ("hybridsd", 1): lambda: lab.hybridsd.equations.guided(torch.tensor([1.0]), torch.tensor([3.0]), 4.0).item(),
    ("acenas", 2): better_of_two,
    ("your_network", 1): mask_entries,
    ("your_network", 2): all_ground,
    ("lens", 2): selectivity,
}  # fmt: skip


@pytest.mark.parametrize("case", MEASURED, ids=lambda case: f"{case[0]}-{case[1]}")
def test_the_answers_are_what_the_lab_computes(case):
    assert lab.course.check(*case, MEASURED[case]()).right
    assert MEASURED[case]() == pytest.approx(correct(*case), rel=1e-5)


def test_the_order_of_a_chain_is_the_one_that_works():
    recipes = {"dqss": lab.DQSS(), "gal": lab.GAL(), "sparsebytenn": lab.SparseByteNN(steps=4)}
    lab.Chain(*(recipes[name] for name in correct("chains", 1)))
    for slip in EXERCISES["chains"][0].slips:
        with pytest.raises(ValueError, match="cannot follow"):
            lab.Chain(*(recipes[name] for name in slip))


# What students answer, as they would have computed it: exercise, answer, a word of the hint it deserves
MISTAKES = [
    ("tour", 1, 144, "weights"), ("tour", 1, 18432, "addition"), ("tour", 1, 576, "filters"),
    ("tour", 1, 1024, "kernel"), ("tour", 1, 27648, "grey"), ("tour", 1, 5184, "padding"),
    ("tour", 2, 0.0771, "1,297"), ("tour", 2, 0.0556, "1,797"), ("tour", 2, 5, "500"), ("tour", 2, 0.002, "hundredth"),
    ("gal", 1, 0.01, "threshold"), ("gal", 1, 0.013, "gradient step comes first"), ("gal", 1, 0.023, "against"),
    ("gal", 1, 0.017, "towards zero"), ("gal", 1, 0, "step size times lambda"), ("gal", 1, -0.003, "sign"),
    ("gal", 2, 125485696, "ten blocks"), ("gal", 2, 47185920, "what is left"), ("gal", 2, 83018368, "six"),
    ("gal", 2, 97174144, "four more"), ("gal", 2, 156599552, "addition"), ("gal", 2, 78.3, "power of ten"),
    ("gal", 2, 78_300_000, "exact"),
    ("decoupling", 1, 14450688, "whole layer"), ("decoupling", 1, 10838016, "inputs"),
    ("decoupling", 1, 7225344, "filters"), ("decoupling", 1, 602112, "3 x 3"), ("decoupling", 1, 27648, "pixel"),
    ("decoupling", 1, 1806336, "96"), ("decoupling", 2, 1.667, "inputs"), ("decoupling", 2, 2.78, "stream"),
    ("decoupling", 2, 0.504, "upside"), ("decoupling", 2, 0.6, "on-rate"), ("decoupling", 2, 0.36, "above 1"),
    ("pams", 1, 0.4, "ReLU"), ("pams", 1, 0.375, "symmetric"), ("pams", 1, 0.286, "down"), ("pams", 1, 3, "code"),
    ("pams", 1, 0.143, "step"), ("pams", 1, 2.8, "step"),
    ("pams", 2, 147712, "rest"), ("pams", 2, 189696.375, "others"), ("pams", 2, 335875, "some room"),
    ("pams", 2, 631299, "eighth"), ("pams", 2, 1369859, "saves"), ("pams", 2, 1517571, "before"),
    ("dqss", 1, 2.33e22, "twice"), ("dqss", 1, 1e32, "multiply"), ("dqss", 1, 800, "multiply"),
    ("dqss", 1, 4.25e37, "exponent"), ("dqss", 1, 44.7, "power of ten"),
    ("dqss", 2, 0.065, "mean"), ("dqss", 2, 0.05, "square it"), ("dqss", 2, 0.04, "better"), ("dqss", 2, 0.01, "half"),
    ("dqss", 2, 0.0625, "cancel"),
    ("sparsebytenn", 1, 0.7, "all four"), ("sparsebytenn", 1, 0.0081, "without any"),
    ("sparsebytenn", 1, 0.76, "something in"), ("sparsebytenn", 1, 0.175, "multiply"),
    ("sparsebytenn", 1, 0.49, "four"), ("sparsebytenn", 1, 0.343, "three"),
    ("sparsebytenn", 1, 24.01, "hundred"), ("sparsebytenn", 1, 0.0033, "sixteen"),
    ("sparsebytenn", 2, 2, "others"), ("sparsebytenn", 2, 19.44, "half"), ("sparsebytenn", 2, 1.398, "30 %"),
    ("sparsebytenn", 2, 0.5257, "upside"), ("sparsebytenn", 2, 0.9486, "share"), ("sparsebytenn", 2, 1.054, "all but"),
    ("foldgpt", 1, 5119348736, "norms"), ("foldgpt", 1, 5928882176, "pairs"), ("foldgpt", 1, 5928914944, "removed"),
    ("foldgpt", 1, 4309880832 + 466944, "start"), ("foldgpt", 1, 5119414272, "takes its norms"),
    ("foldgpt", 1, 1619034112, "left"), ("foldgpt", 2, 0.75, "squared"), ("foldgpt", 2, 0.9, "not squared"),
    ("foldgpt", 2, 1.579, "above"), ("foldgpt", 2, 2.111, "upside"), ("foldgpt", 2, 0.526, "changed places"),
    ("hybridsd", 1, 11, "begins"), ("hybridsd", 1, 8, "begin"), ("hybridsd", 1, 12, "difference"),
    ("hybridsd", 1, 13, "difference"), ("hybridsd", 1, 7, "s itself"), ("hybridsd", 1, -5, "leads"),
    ("hybridsd", 2, 65536, "two bytes"), ("hybridsd", 2, 16384, "two bytes"), ("hybridsd", 2, 8192, "four"),
    ("hybridsd", 2, 262144, "64th"), ("hybridsd", 2, 786432, "raw"), ("hybridsd", 2, 24576, "four channels"),
    ("hybridsd", 2, 32, "bytes"), ("acenas", 1, 0.8, "wrong order off"), ("acenas", 1, 0.2, "wrong order"),
    ("acenas", 1, 0.7, "Spearman"), ("acenas", 1, 0.4, "ten"), ("acenas", 1, 6, "divide"), ("acenas", 1, -0.6, "sign"),
    ("acenas", 2, 0.1845, "negative"), ("acenas", 2, -0.369, "one half"), ("acenas", 2, 0.369, "-1/2"),
    ("acenas", 2, -0.5536, "ideal"), ("acenas", 2, -0.123, "2^r"), ("acenas", 2, -0.25, "log2"),
    ("acenas", 2, -0.5, "pair"),
    ("hyperfd", 1, 6.22, "mean"), ("hyperfd", 1, 7.4, "first"), ("hyperfd", 1, 10.3, "worst"),
    ("hyperfd", 1, 5.2, "median"), ("hyperfd", 1, 91.6, "below"), ("hyperfd", 1, 8.4, "100"),
    ("hyperfd", 1, 3.98, "difference"), ("hyperfd", 1, -3.8, "sign"),
    ("hyperfd", 2, 1164, "transformation"), ("hyperfd", 2, 19644, "meta-vectors"), ("hyperfd", 2, 20744, "two numbers"),
    ("hyperfd", 2, 20760, "counts"), ("hyperfd", 2, 5504, "140"), ("hyperfd", 2, 1304, "square"),
    ("chains", 1, "DQSS, GAL, SparseByteNN", "last"), ("chains", 1, "gal, dqss, sparsebytenn", "last"),
    ("chains", 1, "SparseByteNN -> GAL -> DQSS", "first"), ("chains", 1, ["SparseByteNN", "DQSS", "GAL"], "last"),
    ("chains", 1, "GAL, DQSS", "three names"), ("chains", 2, 7.33, "multiply"), ("chains", 2, 8, "quarter"),
    ("chains", 2, 5.33, "half"), ("chains", 2, 2.67, "bits"), ("chains", 2, 32, "leaves"),
    ("chains", 2, 6, "other way"), ("chains", 2, 0.09375, "upside"),
    ("your_network", 1, 198, "three"), ("your_network", 1, 18, "hidden"), ("your_network", 1, 576, "heads"),
    ("your_network", 1, 162, "four times"), ("your_network", 1, 306, "four times"),
    ("your_network", 1, 642, "LayerNorm"), ("your_network", 1, 630, "q, k and v"),
    ("your_network", 1, 720, "whole heads"),
    ("your_network", 2, 94.68, "mean"), ("your_network", 2, 89, "ground"), ("your_network", 2, 17.8, "rims"),
    ("your_network", 2, 20, "below 1"), ("your_network", 2, 23.67, "five"), ("your_network", 2, 0.189, "percent"),
    ("your_network", 2, 47.3, "colour"),
    ("lens", 1, 0.1538, "twice"), ("lens", 1, 0.5, "unit's"), ("lens", 1, 0.2222, "mask's"),
    ("lens", 1, 8, "intersection"), ("lens", 1, 44, "union"), ("lens", 1, 18.18, "hundred"),
    ("lens", 2, 0.5, "highest"), ("lens", 2, 0.8, "lowest"),
    ("lens", 2, 0.2, "sum"), ("lens", 2, 0.412, "without the highest"), ("lens", 2, 0.7, "divide"),
]  # fmt: skip
# What people do with any number: the mistake, and a word of its hint
SLIPS = (
    (lambda x: -x, "sign"), (lambda x: 100 * x, "hundred times"), (lambda x: x / 100, "hundredth"),
    (lambda x: x / 1e6, "power of ten"), (lambda x: 1000 * x, "power of ten"), (lambda x: 2 * x, "twice"),
    (lambda x: x / 2, "half"), (lambda x: 1.03 * x, "near"), (lambda x: 0.97 * x, "near"),
)  # fmt: skip
WRITTEN = (
    float, lambda x: f"  {x!r} ", np.float64, lambda x: torch.tensor(x, dtype=torch.float64), lambda x: f"{x:,.12g}",
    lambda x: np.array([x]), lambda x: Decimal(repr(float(x))), lambda x: f"{float(x)!r} of them",
)  # fmt: skip


def wrong_answers(count):
    """Exercise, wrong answer and a word of its hint: every second one a mistake of that exercise, in any type."""
    draw = random.Random(0)
    while count:
        name, number, answer, word = draw.choice(MISTAKES)
        if count % 2:
            name, number = draw.choice(NUMBERS)
            slip, word = draw.choice(SLIPS)
            answer = slip(correct(name, number))
            if any(abs(answer - other) <= 0.02 * abs(other) for other in EXERCISES[name][number - 1].slips):
                continue  # is a mistake of this exercise as well, which the table above has
        written = draw.choice(WRITTEN)
        yield name, number, answer if isinstance(answer, (str, list)) else written(answer), word
        count -= 1


def test_wrong_answers_get_the_hint_that_fits():
    verdicts = [(lab.course.check(*case), word) for *case, word in wrong_answers(200)]
    assert not any(verdict.right for verdict, _ in verdicts)
    missed = [f"{verdict}  ({word})" for verdict, word in verdicts if word not in verdict.hint]
    assert len(missed) <= 10, missed


@pytest.mark.parametrize("case", MISTAKES, ids=lambda case: f"{case[0]}-{case[1]}-{case[2]}")
def test_each_usual_mistake_is_known(case):
    *asked, word = case
    verdict = lab.course.check(*asked)
    assert not verdict and (word in verdict.hint or (word == "start" and verdict.hint))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_no_hint_gives_the_answer_away(case):
    exercise = EXERCISES[case[0]][case[1] - 1]
    hints = [exercise.start, *exercise.slips.values()]
    if case == ("chains", 1):
        assert not any("gal, sparsebytenn, dqss" in hint.lower() for hint in hints)
        return
    for text in re.findall(r"\d[\d,]*\.?\d*", " ".join(hints)):
        assert not lab.course.check(*case, text).right


@pytest.mark.parametrize("written", [*WRITTEN, lambda x: Fraction(x), lambda x: torch.tensor([x], dtype=torch.float64)])
@pytest.mark.parametrize("case", NUMBERS, ids=lambda case: f"{case[0]}-{case[1]}")
def test_the_right_answer_is_right_in_every_type(case, written):
    assert lab.course.check(*case, written(correct(*case)))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,024", 1024), ("1 024", 1024), ("1_024", 1024), ("0,25", 0.25), ("1/4", 0.25), (" 25 %", 25),
        ("-2.5e-3", -0.0025), ("12,345,678.5 MB", 12345678.5), ("3", 3), (".5", 0.5), ("0,003", 0.003),
    ],
)  # fmt: skip
def test_a_text_is_read_as_people_write(text, value):
    assert lab.course.checking._number(text) == pytest.approx(value)


@pytest.mark.parametrize(
    "given", ["a lot", "1/0", True, [1, 2], torch.ones(2), np.ones(3), float("nan"), 1j, object(), {}, "1.2.3", b"3"]
)
def test_what_is_no_number_is_asked_for_one(given):
    verdict = lab.course.check("gal", 1, given)
    assert not verdict and verdict.hint == "give the mask's new value" and "\n" not in repr(verdict)


def test_no_answer_and_no_exercise():
    assert repr(lab.course.check("01_gal", 1, None)) == "gal 1: no answer yet: put yours where None stands"
    with pytest.raises(ValueError, match=r"no exercises for 'gall' \(did you mean 'gal'\?\)"):
        lab.course.check("gall", 1, 0)
    for number in (0, 3, "1", True):
        with pytest.raises(ValueError, match="gal has no exercise"):
            lab.course.check("gal", number, 0)


def test_nothing_is_kept():
    first = lab.course.check("gal", 1, 0.5)
    lab.course.check("gal", 1, 0.003)
    assert lab.course.check("gal", 1, 0.5) == first
