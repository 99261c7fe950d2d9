"""What a chain leaves: the outcome of every stage, one report over all of them, and the network of the last."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..core import card, program, store
from ..core.batch import zeros_of
from ..core.onnx import export, qdq
from ..core.outcome import Outcome
from ..core.program import Program
from ..core.training import Step
from ..inference import engine
from .rules import named
from .table import is_quantised

OUTCOME = "outcome"  # the JSON of a stage, and the folder of one that is done in a checkpoint


class ChainError(RuntimeError):
    """A stage failed: the message names it, `outcome` holds what the stages before it did, None if it was the first."""

    def __init__(self, message: str, outcome: "ChainOutcome | None" = None) -> None:
        super().__init__(message)
        self.outcome = outcome


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class ChainOutcome(Outcome):
    """The outcomes of a chain's stages in order, and one report over all of them.

    report: columns are the start and each stage. trace: the steps of all stages. example: the shapes of one input.
    `lab.view(outcome)` slides over the stages; `lab.view(outcome, stage=2)` is the second stage's own view.
    """

    outcomes: tuple[Outcome, ...]
    example: Any

    @property
    def model(self) -> Any:
        """The network of the last stage."""
        return _model(self.outcomes[-1])

    def engine(self, **options: Any) -> Any:
        """The last network in the engine, its zeros left out and its integers multiplied as such: see `lab.engine`."""
        return engine(self, **options)

    def export(self, path: str | Path, opset: int = 17) -> Path:
        """Write the last network as one ONNX file, with its quantisers and its zeros; needs the extra `export`.

        A path that ends in .pt2 is written as a `torch.export` program instead.
        """
        if Path(path).suffix != ".pt2" and any(map(is_quantised, self.outcomes)):
            return qdq.write(self.model, path, opset)
        return export.onnx(self.model, path, zeros_of(self.example), opset)

    def save(self, folder: str | Path, source: bool = False) -> None:
        """Store the chain in a folder, a subfolder for each stage, wholly or not at all; `lab.load` gives it back.

        `source=True` writes the network of every stage as a `torch.export` program too, as of any outcome.
        """
        programs = self._programs(source)

        def write(new: Path) -> None:
            self._fill(new, programs)
            card.write(new, store.present(folder), self)

        store.replace_folder(folder, write)

    def fill(self, folder: Path) -> None:
        """Write a folder for each stage, then what says in which order they come."""
        self._fill(folder, self._programs(False))

    def _fill(self, folder: Path, programs: list[bytes | None]) -> None:
        names = folders(self.recipe.stages)
        for name, outcome, content in zip(names, self.outcomes, programs, strict=True):
            (folder / name).mkdir()
            if content is not None:
                store.write(folder / name / program.NAME, content)
            outcome.fill(folder / name)
        tree = {
            "recipe": "Chain",
            "fields": {"stages": names},
            "report": self.report.to_dict(),
            "trace": [asdict(step) for step in self.trace],
            "found": {"example": self.example},
            "made": self.made,
        }
        files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        store.save(folder, OUTCOME, tree, beside=sorted(files))

    def _programs(self, source: bool) -> list[bytes | None]:
        """The program of each stage that is to have one: of all, or of those that were loaded from theirs."""
        return [o._program() if source or isinstance(_model(o), Program) else None for o in self.outcomes]


def _model(outcome: Outcome) -> Any:
    return outcome.model  # type: ignore[attr-defined]


def folders(stages: tuple[Any, ...]) -> list[str]:
    """The folder of each stage: its position and its name."""
    return [f"{i}-{''.join(c for c in named(stage) if c.isalnum() or c == '_')}" for i, stage in enumerate(stages, 1)]


def steps(outcomes: tuple[Outcome, ...], names: list[str]) -> tuple[Step, ...]:
    """The steps of all stages, each with the name of its folder in front."""
    pairs = zip(names, outcomes, strict=True)
    return tuple(replace(step, stage=f"{name} {step.stage}") for name, outcome in pairs for step in outcome.trace)
