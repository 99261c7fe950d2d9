"""What a stream of tasks leaves behind: what each was recommended, what it sent, and the platform that has learned."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.outcome import Outcome
from .client import Client, Recommendation
from .layers import Ranker
from .learning import Learning
from .messages import ANY, PERCENT
from .platform import Platform


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class HyperFDOutcome(Outcome):
    """The tasks in the order they came, and the platform's state after the last.

    served: one record a task: its name, the rows recommended and their results, scores (n,) of all configurations and
    their spread, regret where a table tells, what was sent. state: the platform's weights and memory, empty for rivals.
    known: the stream's choices, names of decisions, unit, truth where there is one, for the views.
    """

    served: list[dict[str, Any]]
    state: dict[str, Any]
    known: dict[str, Any]

    def found(self) -> dict[str, Any]:
        return {"served": self.served, "state": self.state, "known": self.known}

    def recommend(self, data: Any, k: int = 5) -> list[dict[str, Any]]:
        """The k most promising configurations for a new data set, best first, as decisions by name; nothing is learned.

        data is a FaceTask or a (k, F) tensor of numbers, as the tasks of the stream were. ValueError for rivals, which
        have no model.
        """
        found = self.ranked(data, k)
        names = self.known["decisions"]
        return [dict(zip(names, self.known["choices"][row], strict=True)) for row in found.rows]

    def ranked(self, data: Any, k: int = 5) -> Recommendation:
        """The same with the scores of all configurations."""
        ranker, how = self.ranker()
        client = Client(data, self.known["codes"], lambda rows: [], how)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return client.ranked(ranker, k)

    def ranker(self) -> tuple[Ranker, Learning]:
        """The platform's model after the last task, and how it learned."""
        if not self.state:
            raise ValueError(f"by={self.recipe.by!r} has no model: only 'hyperfd' and 'offline' learn one")
        how = self.recipe.learning()
        with torch.random.fork_rng(devices=[]):
            ranker = how.ranker(torch.Size(self.known["sample"]), self.known["codes"].shape[1])
        ranker.load_state_dict(self.state["weights"])
        return ranker.eval(), how

    def platform(self, folder: str | Path | None = None) -> Platform:
        """The platform as it stands after the last task, to serve clients with; it keeps its state in the folder."""
        _, how = self.ranker()
        allowed = PERCENT if self.known["unit"] == "%" else ANY
        platform = Platform(tuple(self.known["sample"]), self.known["codes"], how, folder=folder, results=allowed)
        if not platform.version:
            platform.restore(self.state)
        return platform

    def meta_vectors(self) -> dict[str, Tensor]:
        """The platform's vectors (R, d) of each task it still remembers, by the task's name."""
        memory = self.state.get("memory", [])
        sent = [one["name"] for one in self.served if one["sent"]]  # others were served, and taught nothing
        names = sent[-len(memory) :] if memory else []
        return {name: one["vectors"] for name, one in zip(names, memory, strict=True)}
