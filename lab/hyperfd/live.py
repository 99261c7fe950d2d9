"""The live mode: streams and clients that really train detectors, in place of a table."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from ..core import parallel
from ..core.data import faces
from ..core.data.faces import FaceTask
from ..core.spaces import streams
from ..core.spaces.streams import Choice, Stream, coded
from .client import DataOwner, Noise
from .detector import BUDGET, evaluated
from .learning import RoundConfig
from .space import DEFAULT, NAMES, Configuration, configurations, even_part


def stream(
    tasks: Mapping[str, FaceTask] | None = None,
    count: int = 216,
    budget: int = BUDGET,
    journal: str | Path | None = None,
    n_jobs: int | None = 1,
) -> Stream:
    """Sets of faces that come one after another, detectors trained when they are asked for: AP at 0.5 in percent.

    tasks: {name: FaceTask}, left out the composed domains; `count` of the 216 configurations may be chosen; `budget` is
    the detector's. What was trained is kept in the folder `journal`, or in a run's checkpoint, by the pictures' hash.
    """
    sets = {name: faces.composed(name) for name in faces.DOMAINS} if tasks is None else dict(tasks)
    everything = configurations()
    marks = {name: fingerprint(task) for name, task in sets.items()}  # of the journal: other pictures, other trainings
    choices = sorted(everything[number].choice for number in even_part(count))
    return Stream(
        names=list(sets),
        choices=choices,
        data=sets.__getitem__,
        train=partial(_trained, sets, budget, marks),
        journal=journal,
        n_jobs=n_jobs,
        default=choices.index(DEFAULT.choice),
        decisions=NAMES,
        metric="ap50",
        unit="%",
        name="faces",
        note="; ".join(sorted({task.note for task in sets.values() if task.note})),
    )


def client(
    task: FaceTask,
    config: RoundConfig | None = None,
    noise: Noise = 0.0,
    budget: int = BUDGET,
    journal: str | Path | None = None,
) -> DataOwner:
    """The owner of a set of faces, who trains what a platform of the 216 configurations recommends.

    noise=(epsilon, delta) as `DataOwner` takes it. What was trained is kept in the folder `journal`, so that a client
    that is killed, or whose upload is refused, trains nothing twice.
    """
    choices, marks = streams.detector_choices(), {"own": fingerprint(task)}

    def evaluate(rows: Sequence[int]) -> list[float]:
        items = [("own", choices[row]) for row in rows]
        train = partial(_trained, {"own": task}, budget, marks)
        return parallel.map(train, items, 1, journal=journal, progress=False)

    return DataOwner(task, coded(choices), evaluate, config or RoundConfig(), noise)


def fingerprint(task: FaceTask) -> str:
    """A short hash of all pixels and boxes."""
    sha = hashlib.sha256()
    for part in (task.learn, task.held_out):
        for image, boxes in zip(part.images, part.boxes, strict=True):
            sha.update(repr((tuple(image.shape), boxes.tolist())).encode() + image.contiguous().numpy().tobytes())
    return sha.hexdigest()[:12]


def _trained(sets: Mapping[str, FaceTask], budget: int, marks: Mapping[str, str], item: tuple[str, Choice]) -> float:
    name, choice = item
    return evaluated(sets[name], Configuration(*choice), budget)["ap50"]
