"""What a run of Hybrid SD leaves behind: quality and cost of every split and control, and pictures of some prompts."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ..core.outcome import Outcome
from .sweep import Point


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class HybridSDOutcome(Outcome):
    """The points that were drawn, and what some of the prompts became at each.

    `pictures` maps 'kind, k' to (P, 3, H, W) uint8, P the first of the prompts. `parts` are what a prompt tells.
    """

    points: tuple[Point, ...]
    prompts: tuple[str, ...]
    parts: tuple[str, ...]
    pictures: dict[str, Tensor]

    def found(self) -> dict[str, Any]:
        return {
            "points": [asdict(point) for point in self.points], "prompts": list(self.prompts),
            "parts": list(self.parts), "pictures": self.pictures,
        }  # fmt: skip

    @classmethod
    def restore(cls, saved: dict[str, Any], recipe: Any, base: Any = None) -> "HybridSDOutcome":
        """The outcome that `save` stored."""
        found = saved["found"]
        points = tuple(Point(**{**point, "parts": tuple(point["parts"])}) for point in found["points"])
        return cls(
            recipe=recipe, **cls.records(saved), points=points, prompts=tuple(found["prompts"]),
            parts=tuple(found["parts"]), pictures=found["pictures"],
        )  # fmt: skip

    def at(self, kind: str = "hybrid") -> dict[int, Point]:
        """The points of one kind ('hybrid', 'edge first', 'fewer steps') by k."""
        return {point.k: point for point in self.points if point.kind == kind}

    def nearest(self, within: float = 2.0) -> Point | None:
        """The split with least cloud compute whose semantic accuracy is within `within` points of the cloud's."""
        by = self.at()
        whole = by[max(by)]
        near = [point for point in by.values() if point.accuracy >= whole.accuracy - within]
        return min(near, key=lambda point: point.cloud_macs, default=None)
