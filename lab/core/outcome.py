"""What a run leaves behind, and how it is stored."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from . import card, origins, program, store
from .batch import Example, each, tensors, zeros_of
from .errors import cut, kind_and_line
from .program import Program
from .report import Report
from .rooms import at_first_use
from .task import Task
from .training import Step

_above, _ = at_first_use({"__name__": __package__.rpartition(".")[0]}, "lens")  # it draws, which a run does without
BASE = "base"  # the subfolder that holds the outcome whose network this one was made from


@dataclass(frozen=True, repr=False, eq=False)
class Outcome:
    """The recipe that ran, its report and its trace; each method adds what it found.

    A method says what it found as a tree of numbers, strings and tensors in `found`, and builds it again in `restore`.
    origin: the outcome whose network it was made from, where that came by `outcome.task`. made: seed, task, network,
    metric and machine, for the model card; empty for what an older version saved.
    """

    recipe: Any
    report: Report
    trace: tuple[Step, ...]
    origin: "Outcome | None" = field(default=None, kw_only=True)
    made: dict[str, Any] = field(default_factory=dict, kw_only=True)

    def __repr__(self) -> str:
        return repr(self.report)

    def _repr_html_(self) -> str:
        return self.report._repr_html_()

    def found(self) -> dict[str, Any]:
        """What the method found, as numbers, strings, lists, dicts and tensors."""
        return {}

    def explain(self, task: Task | None = None, batches: Iterable | None = None, **options: Any) -> Any:
        """What became of the task's network, on one page: a `lab.lens.Explanation`, with its alarms.

        `task` is the one of the run, left out the recipe's own; `batches` are held out, left out those that the task is
        scored on. Options are those of `lab.lens.compare`. ValueError for an outcome without a network.
        """
        return _above("lens").explained(self, task, batches, **options)

    def task(self, task: Task) -> Task:
        """The task with this outcome's network, for what is to follow.

        What a recipe makes of it remembers this outcome: `save` puts it inside, and `lab.load` needs no base.
        """
        model = getattr(self, "model", None)
        if not isinstance(task, Task):
            raise TypeError(f"a network is handed on in a Task, not in a {type(task).__name__}: give lab.Task(...)")
        if not isinstance(model, nn.Module):
            raise TypeError(f"{type(self).__name__} holds no network: nothing can follow it")
        if isinstance(model, Program):
            raise ValueError(
                "this outcome was loaded from its program: call lab.load(folder, base=net) to go on from it"
            )
        return replace(task, model=model, origin=self)

    def save(self, folder: str | Path, source: bool = False) -> None:
        """Store the outcome in a folder, wholly or not at all, as JSON and safetensors; `lab.load` gives it back.

        `source=True` writes the network as a `torch.export` program too, from which `lab.load` reads one of a class of
        your own without `base`. README.md is the model card: what you write into it stays, its figures are made anew.
        What others have put into the folder stays. `docs/format.md` says what a folder holds.
        """
        content = self._program() if source or isinstance(getattr(self, "model", None), Program) else None

        def write(new: Path) -> None:
            if content is not None:
                store.write(new / program.NAME, content)
            self.fill(new)
            card.write(new, store.present(folder), self)

        store.replace_folder(folder, write)

    def _program(self) -> bytes | None:
        """The network as a program; None where the outcome has none, or where its folder needs no base anyway."""
        model, example = getattr(self, "model", None), getattr(self, "example", None)
        return program.to_bytes(model, _example(model, example)) if model is not None and example is not None else None

    def fill(self, folder: Path) -> None:
        """Write all that belongs to the outcome into a new folder; a method with files of its own writes them first."""
        origin = self.origin if self.needs_base() else None
        if origin is not None:
            (folder / BASE).mkdir()
            origin.fill(folder / BASE)
        model = getattr(self, "model", None)
        tree = {
            "recipe": type(self.recipe).__name__,
            "fields": asdict(self.recipe),
            "report": self.report.to_dict(),
            "trace": [asdict(step) for step in self.trace],
            "found": model.stored if isinstance(model, Program) else self.found(),
            **({"made": self.made} if self.made else {}),
            **({"origin": BASE} if origin is not None else {}),
            **_frozen(self),
        }
        files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        store.save(folder, "outcome", tree, beside=sorted(path.as_posix() for path in files))

    def needs_base(self) -> bool:
        """Whether `restore` builds the network again from the one that it was made from."""
        return hasattr(self, "base")

    @classmethod
    def restore(cls, saved: dict[str, Any], recipe: Any, base: Any = None) -> "Outcome":
        """The outcome that `save` stored; `base` is the user's own network where the method needs one."""
        return cls(recipe=recipe, **cls.records(saved), **saved["found"])

    @staticmethod
    def records(saved: dict[str, Any]) -> dict[str, Any]:
        """The report and the trace of a stored outcome, and how it was made."""
        return {
            "report": Report.from_dict(saved["report"]),
            "trace": tuple(Step(**step) for step in saved["trace"]),
            "made": dict(saved.get("made", {})),
        }


class NeedsBaseError(ValueError):
    """The network of an outcome was made from one that nothing in its folder builds again."""


def origin_of(saved: dict[str, Any], folder: Path, base: Any, load: Callable[..., Outcome]) -> Outcome | None:
    """The outcome in a folder's `base`, by `load(folder, base)`; None without one, or where a program stands for it."""
    beside = saved.get("origin")
    if not isinstance(beside, str | None):
        raise ValueError(f"{folder} is damaged (its origin is a {type(beside).__name__}): save the outcome again")
    try:
        return load(folder / BASE, base) if beside else None
    except NeedsBaseError:
        if not (folder / program.NAME).is_file():
            raise
        return None


def restored(
    kind: type[Outcome], recipe: type, saved: dict[str, Any], folder: Path, base: Any, origin: Outcome | None = None
) -> Outcome:
    """The outcome of what was stored, of this kind and recipe; ValueError in one line for a tree that is none.

    `origin` is the outcome in the folder's `base`; without one, `base` is the user's own network or None.
    """
    if base is not None and not isinstance(base, nn.Module):
        raise TypeError(f"base is a {type(base).__name__}: give a torch.nn.Module, the network that was compressed")
    missing = [part for part in ("fields", "report", "trace", "found") if part not in saved]
    if missing:
        raise ValueError(f"{folder} is damaged (no {', '.join(missing)}): save the outcome again")
    if not isinstance(saved["fields"], dict) or not isinstance(saved["found"], dict):
        raise ValueError(f"{folder} is damaged (its fields or what was found are no record): save the outcome again")
    unknown = sorted(saved["fields"].keys() - {field.name for field in fields(recipe)}, key=str)
    if unknown:
        names = cut(", ".join(map(str, unknown)))
        raise ValueError(
            f"{folder} holds a {recipe.__name__} with the fields {names}, which this version of the lab does not know: "
            "load it with the one that wrote it"
        )
    try:
        if origin is not None:
            base = origin.model  # type: ignore[attr-defined]
        elif base is None and _is_undescribed(saved["found"]) and (folder / program.NAME).is_file():
            base = Program((folder / program.NAME).read_bytes(), saved["found"])
        outcome = kind.restore(
            {**saved, "folder": str(folder)}, recipe(**{**getattr(recipe, "BEFORE", {}), **saved["fields"]}), base
        )
        outcome = outcome if origin is None else replace(outcome, origin=origin)
        for name, parameter in _parameters(outcome) if "frozen" in saved else ():
            parameter.requires_grad_(name not in saved["frozen"])
        return outcome
    except (
        KeyError,
        IndexError,
        AttributeError,
        TypeError,
        RuntimeError,
    ) as error:  # of torch, for sizes that are none
        raise ValueError(f"{folder} is damaged ({kind_and_line(error)}): save the outcome again") from error


def _is_undescribed(stored: dict[str, Any]) -> bool:
    """Whether what a method stored says nothing that builds its base again."""
    return "base" in stored and (stored["base"] is None or "outcome" in stored["base"])


def _parameters(outcome: Outcome) -> list[tuple[str, nn.Parameter]]:
    """The parameters of the network that an outcome holds, by name; of a program none, it does not learn."""
    model = getattr(outcome, "model", None)
    return list(model.named_parameters()) if isinstance(model, nn.Module) and not isinstance(model, Program) else []


def _frozen(outcome: Outcome) -> dict[str, list[str]]:
    """Which parameters of an outcome's network are frozen, by name; nothing where none is, or all are."""
    parameters = _parameters(outcome)
    names = [name for name, parameter in parameters if not parameter.requires_grad]
    return {"frozen": names} if 0 < len(names) < len(parameters) else {}


def _example(model: nn.Module, example: Any) -> Example:
    """One input of a network, of what its outcome holds of it: itself or its shapes; as precise as the weights."""
    x = example if any(True for _ in tensors(example)) else zeros_of(example)
    kind = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    return each(x, lambda part: part.to(kind) if kind is not None and part.is_floating_point() else part)


def base_network(base: nn.Module | None, config: Any) -> nn.Module:
    """The network that an outcome was made from: the user's own, or built by its description; draws nothing.

    ValueError in one line where there is neither.
    """
    if base is not None:
        return base
    if config is None or "outcome" in config:
        raise NeedsBaseError(
            "this was made from a network of your own: give base=net, as in lab.load(folder, base=net); networks of "
            "lab.nets, torchvision, timm, transformers, diffusers, and what was saved with source=True, need none"
        )
    return origins.build(config)


def remade(
    stored: dict[str, Any], base: nn.Module | None, make: Callable[[nn.Module], nn.Module], done: str
) -> nn.Module:
    """The network of a stored outcome: `make(dense)` of its base with the stored weights; a program as it is.

    `done` is what was done to the base, such as 'pruned'.
    """
    dense = base_network(base, stored["base"])
    if isinstance(dense, Program):
        return dense
    model = make(dense)
    load_weights(model, stored["weights"], dense, done)
    return model


def load_weights(model: nn.Module, weights: dict[str, Any], base: nn.Module, done: str) -> None:
    """Load the weights of what was made from a base; ValueError in one line where they do not fit.

    `done` is what was done to the base, such as 'pruned'.
    """
    other = f"base={type(base).__name__} is not the network that was {done}"
    if missing := sorted(model.state_dict().keys() - weights.keys()):  # torch lets the counters of norms be missing
        raise ValueError(f"{other}: it has {missing[0]}, which is not stored")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{other}: {' '.join(str(error).split())[:160]}") from error
