"""What a run of Hybrid SD leaves behind: quality and cost of every split and control, and pictures of some prompts."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ..core.outcome import Outcome
from ..core.rooms import at_first_use
from .sweep import SweepPoint

_above, _ = at_first_use({"__name__": __package__}, "view")


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class HybridSDOutcome(Outcome):
    """The points that were drawn, and what some of the prompts became at each.

    `pictures` maps 'kind, k' to (P, 3, H, W) uint8, P the first of the prompts. `parts` are what a prompt tells.
    """

    points: tuple[SweepPoint, ...]
    prompts: tuple[str, ...]
    parts: tuple[str, ...]
    pictures: dict[str, Tensor]

    def found(self) -> dict[str, Any]:
        return {
            "points": [asdict(point) for point in self.points],
            "prompts": list(self.prompts),
            "parts": list(self.parts),
            "pictures": self.pictures,
        }

    @classmethod
    def restore(cls, saved: dict[str, Any], recipe: Any, base: Any = None) -> "HybridSDOutcome":
        """The outcome that `save` stored."""
        kept = saved["found"]
        points = tuple(SweepPoint(**{**point, "parts": tuple(point["parts"])}) for point in kept["points"])
        return cls(
            recipe=recipe,
            **cls.records(saved),
            points=points,
            prompts=tuple(kept["prompts"]),
            parts=tuple(kept["parts"]),
            pictures=kept["pictures"],
        )

    def explain(self, task: Any = None, batches: Iterable[str] | None = None, **options: Any) -> Any:
        """What the edge's model makes of what the cloud's is asked, on one page: see `lab.hybridsd.view.explained`.

        `batches` holds one prompt; options are prompt, seed and places.
        """
        prompts = [] if batches is None else list(batches)
        return _above("view").explained(self, task, *prompts[:1], **options)

    def at(self, kind: str = "hybrid") -> dict[int, SweepPoint]:
        """The points of one kind ('hybrid', 'edge first', 'fewer steps') by k."""
        return {point.k: point for point in self.points if point.kind == kind}

    def nearest(self, within: float = 2.0) -> SweepPoint | None:
        """The split with least cloud compute whose semantic accuracy is within `within` points of the cloud's."""
        by = self.at()
        cloud = by[max(by)]
        near = [point for point in by.values() if point.accuracy >= cloud.accuracy - within]
        return min(near, key=lambda point: point.cloud_macs, default=None)
