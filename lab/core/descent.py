"""The one training loop: a generator, so a recipe's own step stands in plain sight inside the `for`."""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from . import store
from .task import inputs


@dataclass(frozen=True)
class Step:
    """One update: its index within its stage and the terms that were minimised, by name."""

    stage: str
    index: int
    terms: dict[str, float]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block from its own seed (torch, numpy, random) and give the global generators back as they were."""
    if not isinstance(seed, Integral) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed!r}: give a whole number, 0 or more")
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        random.seed(int(seed))
        np.random.seed(seed % 2**32)
        torch.manual_seed(int(seed))
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


class Stage:
    """One stage of a run and all that it changes: what is saved on the way and found again after a kill.

    `keeps` are the objects that the stage changes, each with `state_dict` and `load_state_dict`. With a folder, the
    stage is saved every `every` steps and at its end; a stage opened on a folder that holds it continues from there,
    bit for bit. `owner` names the run; a folder that belongs to another run is refused.
    """

    def __init__(self, folder: str | Path | None, name: str, owner: str, every: int = 100, **keeps: Any) -> None:
        self.folder, self.name, self.owner, self.every, self.keeps = folder, name, owner, every, keeps
        self.trace: list[Step] = []
        self.epoch, self.taken = 0, 0  # passes begun over the data, batches taken of the present one
        self.pass_state = _random_state()  # the generators as the present pass began
        if folder is not None and store.exists(folder, name):
            self._restore(store.load(folder, name))

    def save(self) -> None:
        """Store the stage as it stands; without a folder, do nothing."""
        if self.folder is None:
            return
        store.save(
            self.folder,
            self.name,
            {
                "owner": self.owner,
                "trace": [asdict(step) for step in self.trace],
                "position": [self.epoch, self.taken],
                "pass_state": self.pass_state,
                "random_state": _random_state(),
                "keeps": {name: kept.state_dict() for name, kept in self.keeps.items()},
            },
        )

    def _restore(self, saved: dict[str, Any]) -> None:
        if saved["owner"] != self.owner:
            raise ValueError(
                f"checkpoint={str(self.folder)!r} belongs to {saved['owner']}, this run is {self.owner}: "
                "give another folder, or delete that one"
            )
        self.trace = [Step(**step) for step in saved["trace"]]
        self.epoch, self.taken = saved["position"]
        self.pass_state = saved["pass_state"]
        for name, kept in self.keeps.items():
            kept.load_state_dict(saved["keeps"][name])
        _set_random_state(saved["random_state"])

    def stream(self, batches: Iterable) -> Iterator[Any]:
        """Endless passes over `batches`, from the batch after the last one taken."""
        if self.taken:  # replay the interrupted pass from its own generators, dropping what was taken
            now = _random_state()
            _set_random_state(self.pass_state)
            present = iter(batches)
            for _ in range(self.taken):
                next(present)
            _set_random_state(now)
        else:
            present = self._begin(batches)
        while True:
            for batch in present:
                self.taken += 1
                yield batch
            if not self.taken:
                raise ValueError("Task.batches is empty: give at least one batch")
            present = self._begin(batches)

    def _begin(self, batches: Iterable) -> Iterator[Any]:
        self.epoch, self.taken, self.pass_state = self.epoch + 1, 0, _random_state()
        return iter(batches)


def descend(
    loss_terms: Callable[[Any], Mapping[str, torch.Tensor]],
    batches: Iterable,
    optimiser: torch.optim.Optimizer,
    stage: Stage,
    *,
    steps: int,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
    progress: bool = True,
) -> Iterator[Step]:
    """Minimise the sum of `loss_terms(batch)`; yield a Step after every update.

    `stage.keeps` must hold whatever changes here, the optimiser and the schedule included, for a run to be resumable.
    A loss that is not finite raises FloatingPointError before the update; the last checkpoint stays.
    """
    stream = stage.stream(batches)
    done = len(stage.trace)
    with tqdm(total=steps, initial=done, desc=stage.name, disable=not progress, leave=False) as bar:
        for index in range(done, steps):
            batch = next(stream)
            terms = loss_terms(batch)
            total = torch.stack([term.reshape(()) for term in terms.values()]).sum()
            if not torch.isfinite(total):
                raise FloatingPointError(_not_finite(stage, index, terms, batch))
            optimiser.zero_grad(set_to_none=True)
            total.backward()
            optimiser.step()
            if schedule is not None:
                schedule.step()
            step = Step(stage.name, index, {name: float(term.detach()) for name, term in terms.items()})
            stage.trace.append(step)
            yield step
            bar.update()
            if (index + 1) % stage.every == 0 or index + 1 == steps:
                stage.save()


def _not_finite(stage: Stage, index: int, terms: Mapping[str, torch.Tensor], batch: Any) -> str:
    names = ", ".join(name for name, term in terms.items() if not math.isfinite(float(term.detach())))
    x = inputs(batch)
    broken = torch.is_floating_point(x) and not torch.isfinite(x).all()
    remedy = "the batch holds NaN or infinite values: clean the data" if broken else "lower lr"
    kept = f"; the last checkpoint is in {stage.folder}" if stage.folder is not None else ""
    return f"{stage.name} step {index}: {names or 'the loss'} is not finite; {remedy}{kept}"


def _random_state() -> dict[str, Any]:
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
