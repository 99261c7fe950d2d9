"""What a run leaves behind, and how it is stored."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import nets, store
from .report import Report
from .training import Step


@dataclass(frozen=True, repr=False, eq=False)
class Outcome:
    """The recipe that ran, its report and its trace; each method adds what it found.

    A method says what it found as a tree of numbers, strings and tensors in `found`, and builds it again in `restore`.
    """

    recipe: Any
    report: Report
    trace: tuple[Step, ...]

    def __repr__(self) -> str:
        return repr(self.report)

    def _repr_html_(self) -> str:
        return self.report._repr_html_()

    def found(self) -> dict[str, Any]:
        """What the method found, as numbers, strings, lists, dicts and tensors."""
        return {}

    def save(self, folder: str | Path) -> None:
        """Store the outcome in a folder, wholly or not at all, as JSON and safetensors; `lab.load` gives it back."""
        store.replace_folder(folder, self.fill)

    def fill(self, folder: Path) -> None:
        """Write all that belongs to the outcome into a new folder; a method with files of its own writes them first."""
        tree = {
            "recipe": type(self.recipe).__name__,
            "fields": asdict(self.recipe),
            "report": self.report.to_dict(),
            "trace": [asdict(step) for step in self.trace],
            "found": self.found(),
            **_frozen(self),
        }
        store.save(folder, "outcome", tree, beside=sorted(path.name for path in folder.iterdir() if path.is_file()))

    @classmethod
    def restore(cls, saved: dict[str, Any], recipe: Any, base: Any = None) -> "Outcome":
        """The outcome that `save` stored; `base` is the user's own network where the method needs one."""
        return cls(recipe=recipe, **cls.records(saved), **saved["found"])

    @staticmethod
    def records(saved: dict[str, Any]) -> dict[str, Any]:
        """The report and the trace of a stored outcome."""
        return {
            "report": Report.from_dict(saved["report"]),
            "trace": tuple(Step(**step) for step in saved["trace"]),
        }


def restored(kind: type[Outcome], recipe: type, saved: dict[str, Any], folder: Path, base: Any) -> Outcome:
    """The outcome of what was stored, of this kind and recipe; ValueError in one line for a tree that is none."""
    if base is not None and not isinstance(base, nn.Module):
        raise TypeError(f"base is a {type(base).__name__}: give a torch.nn.Module, the network that was compressed")
    missing = [part for part in ("fields", "report", "trace", "found") if part not in saved]
    if missing:
        raise ValueError(f"{folder} is damaged (no {', '.join(missing)}): save the outcome again")
    if not isinstance(saved["fields"], dict) or not isinstance(saved["found"], dict):
        raise ValueError(f"{folder} is damaged (its fields or what was found are no record): save the outcome again")
    unknown = sorted(saved["fields"].keys() - {field.name for field in fields(recipe)}, key=str)
    if unknown:
        raise ValueError(
            f"{folder} holds a {recipe.__name__} with the fields {', '.join(map(str, unknown))}, which this version of "
            "the lab does not know: load it with the one that wrote it"
        )
    try:
        outcome = kind.restore({**saved, "folder": str(folder)}, recipe(**saved["fields"]), base)
        for name, parameter in _parameters(outcome) if "frozen" in saved else ():
            parameter.requires_grad_(name not in saved["frozen"])
        return outcome
    except (KeyError, IndexError, AttributeError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{folder} is damaged ({reason}): save the outcome again") from error


def _parameters(outcome: Outcome) -> list[tuple[str, nn.Parameter]]:
    """The parameters of the network that an outcome holds, by name."""
    model = getattr(outcome, "model", None)
    return list(model.named_parameters()) if isinstance(model, nn.Module) else []


def _frozen(outcome: Outcome) -> dict[str, list[str]]:
    """Which parameters of an outcome's network are frozen, by name; nothing where none is, or all are."""
    parameters = _parameters(outcome)
    names = [name for name, parameter in parameters if not parameter.requires_grad]
    return {"frozen": names} if 0 < len(names) < len(parameters) else {}


def base_config(model: nn.Module) -> Any:
    """What `lab.nets` builds a network again from; None for a network of the user's own, whatever its `config` is."""
    config = getattr(model, "config", None)
    return config if isinstance(config, Mapping) and "net" in config else None


def base_network(base: nn.Module | None, config: Any) -> nn.Module:
    """The network that an outcome was made from: the user's own, or one of `lab.nets` by its config; draws nothing.

    ValueError in one line where there is neither.
    """
    if base is not None:
        return base
    if config is None:
        raise ValueError("this outcome was made from a network of your own: call lab.load(folder, base=net)")
    with torch.random.fork_rng(devices=[]):
        return nets.build(config)


def load_weights(model: nn.Module, weights: dict[str, Any], base: nn.Module, done: str) -> None:
    """Load the weights of what was made from a base; ValueError in one line where they do not fit.

    `done` is what was done to the base, such as 'pruned'.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"base={type(base).__name__} is not the network that was {done}: {reason}") from error
