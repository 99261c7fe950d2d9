"""What a stream of tasks leaves behind: what each was recommended, what it sent, and the platform that has learned."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.outcome import Outcome
from ..core.rooms import at_first_use
from .client import DataOwner, Recommendation
from .evaluation import TaskRecord
from .layers import Ranker
from .learning import Record, RoundConfig
from .messages import ANY, PERCENT
from .platform import Platform

_above, _ = at_first_use({"__name__": __package__}, "view")


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class HyperFDOutcome(Outcome):
    """The tasks in the order they came, and the platform's state after the last.

    served: one `evaluation.TaskRecord` a task. state: the platform's weights and memory, empty for baselines. context:
    the stream's choices, names of decisions, unit, truth where there is one, for the views.
    """

    served: list[TaskRecord]
    state: dict[str, Any]
    context: dict[str, Any]

    def found(self) -> dict[str, Any]:
        return {"served": [r.to_dict() for r in self.served], "state": self.state, "known": self.context}

    @classmethod
    def restore(cls, saved: dict[str, Any], recipe: Any, base: Any = None) -> "HyperFDOutcome":
        """The outcome that `save` stored."""
        tree = saved["found"]
        served = [TaskRecord.from_dict(record) for record in tree["served"]]
        return cls(recipe=recipe, served=served, state=tree["state"], context=tree["known"], **cls.records(saved))

    def explain(self, task: Any = None, batches: Any = None, **options: Any) -> Any:
        """What was recommended beside what else was tried, on one page: see `lab.hyperfd.view.explained`.

        `task` is a FaceTask; the option `detectors` names detectors with their configurations, to be asked about the
        faces that it holds out. TypeError for what is neither.
        """
        detectors = options.pop("detectors", None)
        for name in (*(["batches"] if batches is not None else []), *options):
            raise TypeError(f"explain() of a stream takes no {name!r}: give a FaceTask and detectors={{name: ...}}")
        return _above("view").explained(self, task, detectors)

    def recommend(self, data: Any, k: int = 5) -> list[dict[str, Any]]:
        """The k most promising configurations for a new data set, best first, as decisions by name; nothing is learned.

        data is a FaceTask or a (k, F) tensor of numbers, as the tasks of the stream were. ValueError for baselines,
        which have no model.
        """
        names, choices = self.context["decisions"], self.context["choices"]
        return [dict(zip(names, choices[row], strict=True)) for row in self.ranked(data, k).rows]

    def ranked(self, data: Any, k: int = 5) -> Recommendation:
        """The k most promising rows for a new data set, with the scores of all configurations."""
        ranker, config = self.ranker()
        client = DataOwner(data, self.context["codes"], lambda rows: [], config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            memory = [Record.from_dict(record) for record in self.state["memory"]]
            return client.ranked(ranker, k, records=memory)

    def ranker(self) -> tuple[Ranker, RoundConfig]:
        """The platform's model after the last task, and how it learned."""
        if not self.state:
            raise ValueError(f"by={self.recipe.by!r} has no model: only 'hyperfd' and 'offline' learn one")
        config = self.recipe.learning()
        with torch.random.fork_rng(devices=[]):  # the weights that are drawn here are replaced at once
            ranker = config.ranker(torch.Size(self.context["sample"]), self.context["codes"].shape[1])
        ranker.load_state_dict(self.state["weights"])
        return ranker.eval(), config

    def platform(self, folder: str | Path | None = None) -> Platform:
        """The platform as it stands after the last task, to serve clients with; it keeps its state in the folder."""
        _, config = self.ranker()
        sample, codes = tuple(self.context["sample"]), self.context["codes"]
        allowed = PERCENT if self.context["unit"] == "%" else ANY
        platform = Platform(sample, codes, config, folder=folder, results=allowed)
        if not platform.version:
            platform.restore(self.state)
        return platform

    def meta_vectors(self) -> dict[str, Tensor]:
        """The platform's vectors (R, d) of each task it still remembers, by the task's name."""
        memory = self.state.get("memory", [])
        sent = [task.name for task in self.served if task.sent]  # others were served, and taught nothing
        names = sent[-len(memory) :] if memory else []
        return {name: record["vectors"] for name, record in zip(names, memory, strict=True)}
