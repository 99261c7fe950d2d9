"""The rivals of GAL: ways to cut a trained network to at most so many multiply-adds, and what each then gets.

Each cut is `cut(task, recipe, budget, outcome) -> network`: a smaller copy of the task's own network. The channels that
may go are those that GAL may mask: of a ResNet those between the two layers of a block; what the residual stream
carries stays, for its zero-padded shortcuts can't be followed by Torch-Pruning.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import islice

import torch
import torch_pruning as tp
from torch import Tensor, nn

import lab
from lab.core import cost
from lab.core.finetune import finetune, sgd
from lab.core.graph import surgery
from lab.core.graph.chains import last_affine
from lab.core.graph.tracing import trace
from lab.core.task import Task
from lab.core.training import Stage, descend

BATCHES = 10  # that Taylor's gradients are summed over
PICTURES = 128  # that CHIP looks at


def uniform_l1(task: Task, recipe: lab.GAL, budget: float, outcome) -> nn.Module:
    """The same share of every layer's channels, smallest L1 norms first (Torch-Pruning)."""
    return torch_pruning(task, tp.pruner.MagnitudePruner, tp.importance.MagnitudeImportance(p=1), budget, uniform=True)


def random_channels(task: Task, recipe: lab.GAL, budget: float, outcome) -> nn.Module:
    """The same share of every layer's channels, drawn (Torch-Pruning)."""
    return torch_pruning(task, tp.pruner.MagnitudePruner, tp.importance.RandomImportance(), budget, uniform=True)


def bn_scale(task: Task, recipe: lab.GAL, budget: float, outcome) -> nn.Module:
    """Network slimming: sparse training of the batch norms' scales with labels, then a global cut (Torch-Pruning)."""
    return torch_pruning(task, tp.pruner.BNScalePruner, tp.importance.BNScaleImportance(), budget, sparse=recipe)


def group_norm(task: Task, recipe: lab.GAL, budget: float, outcome) -> nn.Module:
    """DepGraph: sparse training of whole groups with labels, then a global cut (Torch-Pruning)."""
    importance = tp.importance.GroupMagnitudeImportance()
    return torch_pruning(task, tp.pruner.GroupNormPruner, importance, budget, sparse=recipe)


def group_taylor(task: Task, recipe: lab.GAL, budget: float, outcome) -> nn.Module:
    """First-order Taylor scores of groups from the gradients of ten labelled batches, a global cut (Torch-Pruning)."""
    model = deepcopy(task.model)
    for batch in islice(task.batches, BATCHES):
        task.fit(model, batch)[0].backward()
    return torch_pruning(task, tp.pruner.MagnitudePruner, tp.importance.GroupTaylorImportance(), budget, model=model)


def chip(task: Task, recipe: lab.GAL, budget: float, outcome) -> nn.Module:
    """CHIP (Sui et al. 2021): the channels that are least independent of the others, the same share of every layer."""
    x = torch.cat([task.inputs_of(batch) for batch in islice(task.batches, 2)])[:PICTURES]
    scores = {name: independence(maps) for name, maps in written(task, x)}
    return at_budget(task, _in_ranks(task, scores), budget)


def null_signal(task: Task, recipe: lab.GAL, budget: float, outcome) -> nn.Module:
    """Masks with no signal at all: drawn from N(0, 1) and shrunk by lam alone, they close in the order of the draws."""
    norms = surgery.magnitude(task.model, task.example)
    return at_budget(task, {unit: torch.randn(len(norm)).clamp(min=0) for unit, norm in norms.items()}, budget)


def gal_masks(task: Task, recipe: lab.GAL, budget: float, outcome) -> nn.Module:
    """GAL's own cut, but of the start's weights: what the trained weights of G add."""
    return surgery.remove(task.model, outcome.plan, task.example)


def dense(task: Task, recipe: lab.GAL, budget: float, outcome) -> nn.Module:
    """The start itself, which keeps all its multiply-adds."""
    return deepcopy(task.model)


def same_shape(task: Task, recipe: lab.GAL, budget: float, outcome) -> nn.Module:
    """GAL's small network from random weights."""
    model = deepcopy(outcome.model).to(task.example.device)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model


CUTS: dict[str, Callable] = {
    "uniform L1": uniform_l1,
    "random channels": random_channels,
    "BN scale": bn_scale,
    "group norm": group_norm,
    "group Taylor": group_taylor,
    "CHIP": chip,
    "null signal": null_signal,
    "GAL's masks on the start's weights": gal_masks,
    "GAL's shape from random weights": same_shape,
    "dense trained as long": dense,
}
SPARSE = ("BN scale", "group norm")  # these have trained with labels for the steps of the stage without
AFTER_GAL = ("GAL's masks on the start's weights", "GAL's shape from random weights")  # these need its outcome


def trained(task: Task, model: nn.Module, recipe: lab.GAL, name: str) -> float:
    """Give a cut network both of GAL's stages, in place: its accuracy between the two.

    The stage without labels is distillation from the start, for as many steps at the same rates. The random weights
    learn with labels in both.
    """
    if name == "GAL's shape from random weights":
        finetune(task, model, steps=recipe.steps, lr=recipe.finetune_lr, progress=False)
    elif name not in SPARSE:
        distil(task, model, steps=recipe.steps, lr=recipe.lr)
    between = task.measure(model)
    finetune(task, model, steps=recipe.finetune_steps, lr=recipe.finetune_lr, progress=False)
    return between


def distil(task: Task, model: nn.Module, *, steps: int, lr: float) -> None:
    """Bring the outputs of a network near to the task's own, without labels: SGD on the share of variance it misses."""
    optimiser, schedule = sgd([p for p in model.parameters() if p.requires_grad], lr, steps)
    teacher = deepcopy(task.model).eval()
    stage = Stage(None, "distil", "contest", model=model, optimiser=optimiser, schedule=schedule)

    def terms(batch) -> dict[str, Tensor]:
        x = task.inputs_of(batch)
        with torch.no_grad():
            wanted = teacher(x)  # (N, classes)
        return {"distance": 10 * (model(x) - wanted).square().mean() / wanted.var(correction=0)}  # 10 as GAL's mu

    model.train()
    for _ in descend(terms, task.batches, optimiser, stage, steps=steps, schedule=schedule, progress=False):
        pass
    model.eval()


# -- at a budget ------------------------------------------------------------------------------------------------------


def at_budget(task: Task, scores: surgery.Scores, budget: float) -> nn.Module:
    """The network of the lowest pruning rate, to a five-hundredth, that fits the budget."""
    low, high = 0, 499
    while low < high:
        middle = (low + high) // 2
        model = surgery.remove(task.model, surgery.plan_at(scores, middle / 500), task.example)
        low, high = (low, middle) if cost.macs(model, task.example) <= budget else (middle + 1, high)
    return surgery.remove(task.model, surgery.plan_at(scores, low / 500), task.example)


def torch_pruning(task, pruner_class, importance, budget, *, sparse=None, uniform=False, model=None) -> nn.Module:
    """A Torch-Pruning network within the budget; with a recipe, after as many steps of sparse training with labels."""
    model = deepcopy(task.model) if model is None else model
    free = {name for _, names in surgery.magnitude(task.model, task.example) for name in names}
    kept = [m for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and name not in free]
    pruner = pruner_class(
        model, task.example, importance=importance, global_pruning=not uniform, pruning_ratio=0.98,
        iterative_steps=200, ignored_layers=kept, max_pruning_ratio=0.98,
    )  # fmt: skip
    if sparse is not None:
        pruner.update_regularizer()
        finetune(task, model, steps=sparse.steps, lr=sparse.finetune_lr, penalty=pruner.regularize, progress=False)
    while cost.macs(model, task.example) > budget and pruner.current_step < pruner.iterative_steps:
        pruner.step()
    model.zero_grad(set_to_none=True)
    return model.eval()


def _in_ranks(task: Task, scores: dict[str, Tensor]) -> surgery.Scores:
    """Each channel's rank in its layer, so that all layers lose the same share."""
    units = surgery.magnitude(task.model, task.example)
    return {unit: scores[unit[1][0]].argsort().argsort() / len(score) for unit, score in units.items()}


# -- CHIP -------------------------------------------------------------------------------------------------------------


def independence(maps: Tensor) -> Tensor:
    """How much of the nuclear norm of a picture's maps goes with each channel, the mean: (N, C, H, W) -> (C,).

    CHIP's Eq. (3): ||A||_* - ||M_i A||_*, A (C, H W) being the maps and M_i setting row i to 0.
    """
    c = maps.shape[1]
    gram = torch.einsum("ncp,ndp->ncd", *[maps.flatten(2).double().cpu()] * 2)
    whole = _nuclear(gram)  # (N,)
    lost = []
    for i in range(c):
        others = [j for j in range(c) if j != i]
        lost.append((whole - _nuclear(gram[:, others][:, :, others])).mean())
    return torch.stack(lost).float()


def _nuclear(gram: Tensor) -> Tensor:
    """The nuclear norms of matrices A from A A^T (N, C, C): sums of singular values."""
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum(1)


def written(task: Task, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Of each layer whose channels may go, its name and its maps behind batch norm and activation: (N, C, H, W)."""
    graph = trace(task.model, task.example).eval()
    free = {names[0] for _, names in surgery.magnitude(task.model, task.example)}
    layers = [node for node in graph.graph.nodes if str(node.target) in free]
    ends = [last_affine(node)[1] for node in layers]
    (answer,) = (node for node in graph.graph.nodes if node.op == "output")
    answer.args = (tuple(ends),)
    graph.recompile()
    with torch.no_grad():
        yield from zip([str(node.target) for node in layers], graph(x), strict=True)
