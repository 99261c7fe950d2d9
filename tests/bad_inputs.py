"""Bad inputs over the whole public surface: a table of calls that must end in one line, read by test_bad_inputs.py.

A row is the public name, what is wrong, and the call, which is given an empty folder. The line that it ends in names
what is wrong by a word of the row. `WITHOUT` says why a public name has no row.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import lab
from lab.core.task import Task
from lab.core.training import seeded


class Bad(NamedTuple):
    """A public name, a call of it that cannot be right, and the words that its line must hold."""

    name: str
    call: Callable[[Path], Any]
    words: tuple[str, ...]


X = torch.zeros(2, 1, 8, 8)
PAIR = (X, torch.tensor([0, 1]))


def net() -> nn.Module:
    with seeded(0):
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        ).eval()


def task(**changes: Any) -> Task:
    batches = [PAIR]
    return Task(**{"model": net(), "batches": batches, "score": lambda model: 50.0, **changes})


def file(folder: Path, name: str, content: bytes = b"") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def chain(operator: str) -> lab.Graph:
    return lab.Graph(("input", operator, "output"), ((0, 1), (1, 2)))


def space(**changes: Any) -> lab.Space:
    return lab.Space(
        **{"graphs": [chain("a"), chain("b")], "labels": torch.tensor([1.0, 2.0]), "name": "two", **changes}
    )


def stream(**changes: Any) -> lab.Stream:
    fields = {
        "names": ["a", "b"], "choices": [(1,), (2,)], "data": lambda name: torch.zeros(20, 3),
        "scores": torch.ones(2, 2, dtype=torch.float64),
    }  # fmt: skip
    return lab.Stream(**{**fields, **changes})


class Outcome:
    """No outcome of any recipe."""


ROWS = [
    # -- tasks, spaces, streams ----------------------------------------------------------------------------------------
    Bad("Task", lambda f: task(model="resnet18"), ("model",)),
    Bad("Task", lambda f: task(batches=5).check(), ("batches",)),
    Bad("Task", lambda f: task(batches=[]).check(), ("batches", "empty")),
    Bad("Task", lambda f: task(score=3), ("score",)),
    Bad("Task", lambda f: task(score=lambda model: "good").measure(net()), ("score",)),
    Bad("Task", lambda f: task(score=lambda model: math.nan).measure(net()), ("score",)),
    Bad("Graph", lambda f: lab.Graph(("a", "b"), ((0, 5),)), ("5",)),
    Bad("Graph", lambda f: lab.Graph(("a", "b"), ((0, 1), (1, 0))), ("cycle",)),
    Bad("Space", lambda f: space(labels=torch.ones(3)), ("labels",)),
    Bad("Space", lambda f: space(graphs=[]), ("graphs",)),
    Bad("Space", lambda f: space(labels=torch.tensor([1.0, math.inf])), ("labels",)),
    Bad("Stream", lambda f: stream(scores=torch.ones(3, 2)), ("scores",)),
    Bad("Stream", lambda f: stream(names=[]), ("names",)),
    Bad("Stream", lambda f: stream(choices=[(1,), (1,)]), ("choices",)),
    # -- the lab's tasks -----------------------------------------------------------------------------------------------
    Bad("tasks.accuracy", lambda f: lab.tasks.accuracy([])(net()), ("empty",)),
    Bad("tasks.digits", lambda f: lab.tasks.digits(size=0), ("size",)),
    Bad("tasks.digits", lambda f: lab.tasks.digits(channels=2), ("channels",)),
    Bad("tasks.digits", lambda f: lab.tasks.digits(batch_size=0), ("batch_size",)),
    Bad("tasks.digits", lambda f: lab.tasks.digits("resnet18"), ("model",)),
    Bad("tasks.faces", lambda f: lab.tasks.faces("nobody"), ("nobody",)),
    Bad("tasks.faces", lambda f: lab.tasks.faces(folder=f), ("no known form",)),
    Bad("tasks.faces", lambda f: lab.tasks.faces(seed=-1), ("seed",)),
    Bad("tasks.fashion", lambda f: lab.tasks.fashion(net="vgg99"), ("vgg99",)),
    Bad("tasks.fashion", lambda f: lab.tasks.fashion(folder=f / "none"), ("none",)),
    Bad("tasks.fashion", lambda f: lab.tasks.fashion(batch_size=-1), ("batch_size",)),
    Bad("tasks.images", lambda f: lab.tasks.images(f, net()), ("no known form",)),
    Bad("tasks.images", lambda f: lab.tasks.images(f / "none", net()), ("does not exist",)),
    Bad("tasks.images", lambda f: lab.tasks.images(file(f, "a.npz", b"PK"), net()), ("a.npz",)),
    Bad("tasks.images", lambda f: lab.tasks.images(f, net(), augment=("spin",)), ("augment",)),
    Bad("tasks.images", lambda f: lab.tasks.images(5, net()), ("int",)),
    Bad("tasks.mean_iou", lambda f: lab.tasks.mean_iou([])(net()), ("empty",)),
    Bad("tasks.photos", lambda f: lab.tasks.photos(5), ("scale",)),
    Bad("tasks.photos", lambda f: lab.tasks.photos(folder=f), ("no pictures",)),
    Bad("tasks.photos", lambda f: lab.tasks.photos(patch=7), ("patch",)),
    Bad("tasks.photos_held_out", lambda f: lab.tasks.photos_held_out(2, f), ("no pictures",)),
    Bad("tasks.photos_held_out", lambda f: lab.tasks.photos_held_out(0), ("scale",)),
    Bad("tasks.prose", lambda f: lab.tasks.prose(f), ("no weights",)),
    Bad("tasks.prose", lambda f: lab.tasks.prose(text=f / "none"), ("none",)),
    Bad("tasks.psnr", lambda f: lab.tasks.psnr([])(net()), ("empty",)),
    Bad("tasks.scenes", lambda f: lab.tasks.scenes(label="smell"), ("smell",)),
    Bad("tasks.scenes", lambda f: lab.tasks.scenes(size=0), ("size",)),
    Bad("tasks.scenes", lambda f: lab.tasks.scenes(batch_size=0), ("batch_size",)),
    Bad("tasks.ssim", lambda f: lab.tasks.ssim([])(net()), ("empty",)),
    Bad("tasks.graphs", lambda f: lab.tasks.graphs(0), ("count",)),
    # -- tables --------------------------------------------------------------------------------------------------------
    Bad("tables.nasbench201", lambda f: lab.tables.nasbench201(f / "none"), ("none",)),
    Bad("tables.nasbench201", lambda f: lab.tables.nasbench201(f / "none", "svhn"), ("svhn",)),
    Bad("tables.nasbench201", lambda f: lab.tables.nasbench201(file(f, "t.csv", b"a,b\n1,2\n")), ("arch_str",)),
    Bad("tables.nasbench201", lambda f: lab.tables.nasbench201(f), ("no table",)),
    Bad("tables.nasbench_macro", lambda f: lab.tables.nasbench_macro(file(f, "m.json", b"[")), ("m.json",)),
    Bad("tables.nasbench_macro", lambda f: lab.tables.nasbench_macro(f / "none"), ("none",)),
    Bad("tables.accel_nasbench", lambda f: lab.tables.accel_nasbench(f), ("no result files",)),
    Bad("tables.accel_nasbench", lambda f: lab.tables.accel_nasbench(f / "none"), ("none",)),
    Bad("tables.nasbench_graph", lambda f: lab.tables.nasbench_graph("imagenet"), ("imagenet",)),
    Bad("tables.graph_records", lambda f: lab.tables.graph_records("imagenet"), ("imagenet",)),
    Bad("tables.graph_network", lambda f: lab.tables.graph_network(-1), ("-1",)),
    Bad("tables.graph_network", lambda f: lab.tables.graph_network(123456), ("123456",)),
    Bad("tables.read_csv", lambda f: lab.tables.read_csv(file(f, "t.csv")), ("t.csv",)),
    # -- networks ------------------------------------------------------------------------------------------------------
    Bad("nets.build", lambda f: lab.nets.build({"net": "vgg99"}), ("vgg99",)),
    Bad("nets.build", lambda f: lab.nets.build({}), ("net",)),
    Bad("nets.build", lambda f: lab.nets.build("resnet18"), ("str",)),
    Bad("nets.build", lambda f: lab.nets.build({"net": "lenet", "colour": 3}), ("colour",)),
    Bad("nets.densenet40", lambda f: lab.nets.densenet40(classes=0), ("classes",)),
    Bad("nets.edsr", lambda f: lab.nets.edsr(scale=7), ("scale",)),
    Bad("nets.edsr", lambda f: lab.nets.edsr(width=0), ("width",)),
    Bad("nets.googlenet_cifar", lambda f: lab.nets.googlenet_cifar(channels=0), ("channels",)),
    Bad("nets.lenet", lambda f: lab.nets.lenet(classes=-1), ("classes",)),
    Bad("nets.mobilenet_v1", lambda f: lab.nets.mobilenet_v1(width=0), ("width",)),
    Bad("nets.mobilenet_v2", lambda f: lab.nets.mobilenet_v2(width=math.nan), ("width",)),
    Bad("nets.rdn", lambda f: lab.nets.rdn(scale=5), ("scale",)),
    Bad("nets.rdn", lambda f: lab.nets.rdn(layers=0), ("layers",)),
    Bad("nets.resnet18", lambda f: lab.nets.resnet18(classes=0), ("classes",)),
    Bad("nets.resnet50", lambda f: lab.nets.resnet50(classes="ten"), ("classes",)),
    Bad("nets.resnet_cifar", lambda f: lab.nets.resnet_cifar(21), ("21",)),
    Bad("nets.resnet_cifar", lambda f: lab.nets.resnet_cifar(20, classes=0), ("classes",)),
    Bad("nets.unet", lambda f: lab.nets.unet(depth=0), ("depth",)),
    Bad("nets.unet", lambda f: lab.nets.unet(width=-8), ("width",)),
    Bad("nets.vgg16", lambda f: lab.nets.vgg16(classes=0), ("classes",)),
    Bad("nets.vgg16_cifar", lambda f: lab.nets.vgg16_cifar(width=0), ("width",)),
    Bad("nets.vgg19_cifar", lambda f: lab.nets.vgg19_cifar(channels=-3), ("channels",)),
    Bad("nets.vit", lambda f: lab.nets.vit(size=28, patch=5), ("patch",)),
    Bad("nets.vit", lambda f: lab.nets.vit(width=10, heads=3), ("heads",)),
    # -- costs and surgery ---------------------------------------------------------------------------------------------
    Bad("cost.bytes_stored", lambda f: lab.cost.bytes_stored("net"), ("str",)),
    Bad("cost.latencies", lambda f: lab.cost.latencies({"a": net()}, X, repeats=0), ("repeats",)),
    Bad("cost.latency", lambda f: lab.cost.latency(net(), X, threads=0), ("threads",)),
    Bad("cost.latency", lambda f: lab.cost.latency(net(), X, batch=-1), ("batch",)),
    Bad("cost.latency", lambda f: lab.cost.latency(net(), torch.zeros(2, 7)), ("example",)),
    Bad("cost.layer_macs", lambda f: lab.cost.layer_macs(net(), None), ("example",)),
    Bad("cost.macs", lambda f: lab.cost.macs(net(), torch.zeros(1, 3, 8, 8)), ("example",)),
    Bad("cost.macs", lambda f: lab.cost.macs(None, X), ("NoneType",)),
    Bad("cost.parameters", lambda f: lab.cost.parameters(net(), "half"), ("half",)),
    Bad("cost.parameters", lambda f: lab.cost.parameters([net()]), ("list",)),
    Bad("surgery.remove", lambda f: lab.surgery.remove(net(), lab.surgery.Plan(channels={"9": (0,)}), X), ("9",)),
    Bad("surgery.remove", lambda f: lab.surgery.remove(net(), lab.surgery.Plan(channels={"0": (7,)}), X), ("0",)),
    Bad("surgery.remove", lambda f: lab.surgery.remove(net(), lab.surgery.Plan(channels={"0": ()}), X), ("0",)),
    Bad("surgery.magnitude", lambda f: lab.surgery.magnitude(net(), torch.zeros(2, 7)), ("(2, 7)",)),
    Bad("surgery.magnitude", lambda f: lab.surgery.magnitude(5, X), ("int",)),
    Bad("surgery.plan_at", lambda f: lab.surgery.plan_at({}, 1.5), ("1.5",)),
    Bad("surgery.plan_at", lambda f: lab.surgery.plan_at({}, math.nan), ("nan",)),
    Bad("engine", lambda f: lab.engine(Outcome()), ("Outcome",)),
    Bad("engine", lambda f: lab.engine(net()), ("Sequential",)),
    Bad("finetune", lambda f: lab.finetune(task(), net(), steps=-1, lr=0.1, progress=False), ("steps",)),
    Bad("finetune", lambda f: lab.finetune(task(), net(), steps=1, lr=-0.1, progress=False), ("lr",)),
    Bad("finetune", lambda f: lab.finetune(task(), net(), steps=1, lr=0.1, checkpoint=""), ("checkpoint",)),
    Bad("finetune", lambda f: lab.finetune(net(), net(), steps=1, lr=0.1, progress=False), ("Task",)),
    Bad("load", lambda f: lab.load(f), ("outcome.json",)),
    Bad("load", lambda f: lab.load(f / "none"), ("outcome.json",)),
    Bad("load", lambda f: lab.load(file(f, "outcome.json", b"{}").parent), ("damaged",)),
    Bad("load", lambda f: lab.load(5), ("int",)),
    Bad("load", lambda f: lab.load("hf://"), ("hf://",)),
    Bad("map", lambda f: lab.map(abs, [1], n_jobs=0), ("n_jobs",)),
    Bad("map", lambda f: lab.map(abs, [1], backend="cloud"), ("backend",)),
    Bad("map", lambda f: lab.map("abs", [1]), ("abs",)),
    Bad("map", lambda f: lab.map(abs, 5), ("items", "int")),
    Bad("map", lambda f: lab.map(abs, [1], journal=file(f, "journal"), progress=False), ("journal",)),
    Bad("push", lambda f: lab.push(f, "me/net"), ("outcome.json",)),
    Bad("push", lambda f: lab.push(f, "no name at all"), ("no name at all",)),
    Bad("works_with", lambda f: lab.works_with("vgg99"), ("vgg99",)),
    Bad("works_with", lambda f: lab.works_with(5), ("5",)),
    Bad("pams.unpack", lambda f: lab.pams.unpack(f / "none"), ("none",)),
    Bad("pams.unpack", lambda f: lab.pams.unpack(file(f, "p.safetensors", bytes(99))), ("p.safetensors",)),
    Bad("sparsebytenn.swap", lambda f: lab.sparsebytenn.swap("net", X), ("str",)),
    Bad("sparsebytenn.swap", lambda f: lab.sparsebytenn.swap(net(), None), ("example",)),
    # -- pictures ------------------------------------------------------------------------------------------------------
    Bad("view", lambda f: lab.view(5), ("int",)),
    Bad("view", lambda f: lab.view(Outcome()), ("Outcome",)),
    Bad("compare", lambda f: lab.compare([]), ("outcome",)),
    Bad("compare", lambda f: lab.compare([Outcome(), Outcome()]), ("Outcome",)),
    Bad("compare", lambda f: lab.compare(5), ("int",)),
    Bad("ui.contest", lambda f: lab.ui.contest("gal/none"), ("none",)),
    Bad("ui.contest", lambda f: lab.ui.contest(file(f, "c.json", b"{}")), ("c.json",)),
    Bad("ui.export", lambda f: lab.ui.export(file(f, "own.ipynb", b"{}")), ("own.ipynb",)),
    Bad("ui.Control", lambda f: lab.ui.Control([]), ("values",)),
    Bad("ui.Control", lambda f: lab.ui.Control([1, 2], start=3), ("start",)),
    Bad("ui.Explorer", lambda f: lab.ui.Explorer(lambda: lab.ui.Frame(""), {"a": []}), ("a",)),
    Bad("ui.pruning_rate", lambda f: lab.ui.pruning_rate(task(), rates=(1.5,), progress=False), ("1.5",)),
    Bad("ui.pruning_rate", lambda f: lab.ui.pruning_rate(net(), progress=False), ("Task",)),
    Bad("ui.pruning_rate", lambda f: lab.ui.pruning_rate(task(), Outcome(), progress=False), ("Outcome",)),
    Bad("scenes.random_scenes", lambda f: lab.scenes.random_scenes(-1), ("count",)),
    Bad("scenes.draw", lambda f: lab.scenes.draw([], 0), ("size",)),
    Bad("scenes.Scene", lambda f: lab.scenes.Scene(1, "octarine", "circle", "left"), ("octarine",)),
    Bad("scenes.kinds", lambda f: lab.scenes.kinds(("furry",)), ("furry",)),
    # -- the lens ------------------------------------------------------------------------------------------------------
    Bad("lens.activations", lambda f: lab.lens.activations(net(), X, "9"), ("9",)),
    Bad("lens.activations", lambda f: lab.lens.activations(5, X), ("int",)),
    Bad("lens.activations", lambda f: lab.lens.activations(net(), torch.zeros(2, 7)), ("7",)),
    Bad("lens.atlas", lambda f: lab.lens.atlas(net(), X, ["nowhere"]), ("nowhere",)),
    Bad("lens.attend", lambda f: lab.lens.attend(net(), X), ("attention",)),
    Bad("lens.attention", lambda f: lab.lens.attention(net(), X), ("attention",)),
    Bad("lens.attribution", lambda f: lab.lens.attribution(net(), X, 9), ("9",)),
    Bad("lens.attribution", lambda f: lab.lens.attribution(net(), X, method="guess"), ("guess",)),
    Bad("lens.compare", lambda f: lab.lens.compare(net(), net(), []), ("batches",)),
    Bad("lens.compare", lambda f: lab.lens.compare(net(), "net", [PAIR]), ("str",)),
    Bad("lens.compare", lambda f: lab.lens.compare(net(), net(), [PAIR], kept={"7": [0]}), ("'7'",)),
    Bad("lens.explained", lambda f: lab.lens.explained(Outcome()), ("Outcome",)),
    Bad("lens.compare_maps", lambda f: lab.lens.compare_maps(net(), nn.Linear(2, 2), X), ("",)),
    Bad("lens.concept_sets", lambda f: lab.lens.concept_sets(net(), "9", [(X, X)], ["a"]), ("9",)),
    Bad("lens.cross_attention", lambda f: lab.lens.cross_attention(net(), lambda m: m(X)), ("attention",)),
    Bad("lens.dissect", lambda f: lab.lens.dissect(net(), "0", [], ["a"]), ("batches",)),
    Bad("lens.explain", lambda f: lab.lens.explain(net(), X, 0, ["guess"]), ("guess",)),
    Bad("lens.filters", lambda f: lab.lens.filters(net(), "9", [X], progress=False), ("9",)),
    Bad("lens.filters", lambda f: lab.lens.filters(net(), "0", [X], k=0, progress=False), ("k",)),
    Bad("lens.receptive_fields", lambda f: lab.lens.receptive_fields(net(), "9", X), ("9",)),
    Bad("lens.rollout", lambda f: lab.lens.rollout(net(), X), ("attention",)),
    Bad("lens.segmentation", lambda f: lab.lens.segmentation({}, X, X), ("models",)),
    Bad("lens.selectivity", lambda f: lab.lens.selectivity(net(), "9", [X], progress=False), ("9",)),
    Bad("lens.strongest", lambda f: lab.lens.strongest(net(), "0", [], progress=False), ("batches",)),
    Bad("lens.switched_off", lambda f: lab.lens.switched_off(net(), "9", [PAIR], progress=False), ("9",)),
    Bad("lens.unit_concepts", lambda f: lab.lens.unit_concepts(net(), "0", [], ["a"], progress=False), ("batches",)),
    Bad("lens.weights", lambda f: lab.lens.weights(net(), "9"), ("9",)),
    Bad("lens.with_fresh_weights", lambda f: lab.lens.with_fresh_weights("net"), ("str",)),
    Bad("lens.without", lambda f: lab.lens.without(net(), "0", -1).__enter__(), ("-1",)),
    Bad("lens.words", lambda f: lab.lens.words({}, lambda m: m(X), {}), ("model",)),
    # -- chains --------------------------------------------------------------------------------------------------------
    Bad("Chain", lambda f: lab.Chain(), ("stage",)),
    Bad("Chain", lambda f: lab.Chain(5), ("int",)),
    Bad("Chain", lambda f: lab.Chain(lab.AceNAS(), lab.GAL()), ("AceNAS",)),
    Bad("Chain", lambda f: lab.Chain(lab.GAL()).run(net()), ("Task",)),
    # -- Hybrid SD and HyperFD -----------------------------------------------------------------------------------------
    Bad("hybridsd.scenes", lambda f: lab.hybridsd.scenes(0), ("count",)),
    Bad("hybridsd.Edit", lambda f: lab.hybridsd.Edit(torch.zeros(1, 3, 8, 8), strength=2.0), ("strength",)),
    Bad("hybridsd.HybridPipeline", lambda f: lab.hybridsd.HybridPipeline.from_pretrained(f), ("model_index.json",)),
    Bad("hyperfd.Configuration", lambda f: lab.hyperfd.Configuration(width=-1), ("width",)),
    Bad("hyperfd.Configuration", lambda f: lab.hyperfd.Configuration(optimiser="newton"), ("newton",)),
    Bad("course.check", lambda f: lab.course.check("gall", 1, 0), ("gall", "gal")),
    Bad("course.check", lambda f: lab.course.check("gal", 3, 0), ("gal", "3")),
    Bad("course.grade", lambda f: lab.course.grade(file(f, "a.ipynb", b"rubbish")), ("a.ipynb", "no notebook")),
    Bad("course.graded", lambda f: list(lab.course.graded([f / "none.ipynb"])), ("none.ipynb",)),
]  # fmt: skip

# A function of the lens that is given no network says so.
OF_A_MODEL = {
    "activations": (X,),
    "atlas": (X,),
    "attend": (X,),
    "attention": (X,),
    "attribution": (X, 0),
    "compare_maps": (net(), X),
    "concept_sets": ("0", [(X, X)], ["a"]),
    "cross_attention": (lambda model: model(X),),
    "dissect": ("0", [(X, X)], ["a"]),
    "explain": (X, 0),
    "filters": ("0", [X]),
    "receptive_fields": ("0", X),
    "rollout": (X,),
    "selectivity": ("0", [X]),
    "strongest": ("0", [X]),
    "switched_off": ("0", [PAIR]),
    "unit_concepts": ("0", [(X, X)], ["a"]),
    "weights": (),
    "with_fresh_weights": (),
}
ROWS += [
    Bad(f"lens.{name}", lambda f, name=name, rest=rest: getattr(lab.lens, name)("net", *rest), ("str",))
    for name, rest in OF_A_MODEL.items()
]

MADE = "the lab makes it, and gives it to the user"
NOTHING = "it takes nothing that could be wrong"
WITHOUT = {
    **dict.fromkeys((recipe.__name__ for recipe in lab.RECIPES), "every field and every run: test_contract.py"),
    **dict.fromkeys(("chains", "tables.lab_cells", "tasks.cells", "tasks.detectors"), NOTHING),
    **dict.fromkeys(("hyperfd.configurations", "foldgpt.architectures", "chain.Orders"), NOTHING),
    **dict.fromkeys((f"{room}.{name}Outcome" for name, (room, _) in lab._RECIPES.items()), MADE),
    **dict.fromkeys((f"chain.{name}" for name in ("ChainOutcome", "ChainReport", "ChainRow", "FunctionOutcome")), MADE),
    **dict.fromkeys(("chain.ChainError", "chain.Function", "cost.Latency", "sparsebytenn.Swap"), MADE),
    **dict.fromkeys(("ui.Classifier", "ui.Comparison", "ui.Contest", "ui.Frame", "hybridsd.Samples"), MADE),
    "lens.Explanation": MADE,
    "ui.page": "Explorer.save writes it",
    "course.Verdict": MADE,
    "hybridsd.HybridSampler": "HybridPipeline makes it",
    "hybridsd.PromptTask": "test_recipe.py of its room",
    "hybridsd.embedded": "its solver is HybridSD's field: test_contract.py",
    **dict.fromkeys(("surgery.anchor", "surgery.is_add", "surgery.residual_branch"), "nodes of a traced network"),
    "surgery.Plan": "surgery.remove reads it",
    "surgery.remove_from": "surgery.remove, behind its checks",
    "surgery.kept_channels": "surgery.remove, behind its checks",
    "tables.numbers": "the readers of tables, which are here",
    "ui.figure": "plotly's own words",
    **dict.fromkeys(("scenes.validate_shown", "scenes.balanced"), "random_scenes, which is here"),
    **dict.fromkeys(("scenes.inked", "scenes.relief", "scenes.distance"), "draw, which is here"),
}
