"""The one training loop: a generator, so a recipe's own step stands in plain sight inside the `for`."""

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import store
from .progress import tqdm
from .zeros import Zeros

SINGLE = "a batch holds one picture alone, which batch norm cannot learn from: give the DataLoader drop_last=True"
SAVE_SECONDS = 30.0  # the most that a kill costs a run with a checkpoint, besides the step it comes in


@dataclass(frozen=True)
class Step:
    """One update: its index within its stage and the terms that were minimised, by name."""

    stage: str
    index: int
    terms: dict[str, float]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block from its own seed (torch, numpy, random) and give the global generators back as they were."""
    if not isinstance(seed, Integral) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed!r}: give an integer in 0..{2**32 - 1}")
    with unmoved():
        random.seed(int(seed))
        np.random.seed(int(seed))
        torch.manual_seed(int(seed))
        yield


@contextmanager
def unmoved() -> Iterator[None]:
    """Run a block and give the global generators (torch, numpy, random) back as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


_REHEARSING = ContextVar("rehearsing", default=False)


class _Rehearsed(BaseException):  # nothing that catches errors may take it for one
    """A training has its first loss."""


@contextmanager
def rehearsal() -> Iterator[None]:
    """A block that ends where a training has its first loss: what a recipe refuses, it has refused by then."""
    token = _REHEARSING.set(True)
    try:
        yield
    except _Rehearsed:
        pass
    finally:
        _REHEARSING.reset(token)


class Stage:
    """One stage of a run and all that it changes: what is saved on the way and found again after a kill.

    `state` holds the objects that the stage changes, each with `state_dict` and `load_state_dict`. With a folder, the
    stage is saved every `every` steps, after SAVE_SECONDS without a save, and at its end; a stage opened on a folder
    that holds it continues from there, bit for bit. `run_id` names the run; the folder of another run is refused.
    Weights of its optimisers that are pruned when it begins stay exactly 0: `zeros`, as `core.zeros.pruned` says.
    """

    def __init__(self, folder: str | Path | None, name: str, run_id: str, every: int = 100, **state: Any) -> None:
        self.folder, self.name, self.run_id, self.every, self.state = folder, name, run_id, every, state
        self.trace: list[Step] = []
        self.epoch, self.batches_consumed = 0, 0  # passes begun over the data, batches taken of the present one
        self.pass_state: dict[str, Any] = {}  # the generators as the present pass began, the loader's own included
        self.saved_at = time.monotonic()
        self.zeros = Zeros(_learned(state.values()))  # before a restore, which may bring zeros of the stage's making
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
                "owner": self.run_id,
                "trace": [asdict(step) for step in self.trace],
                "position": [self.epoch, self.batches_consumed],
                "pass_state": self.pass_state,
                "random_state": _random_state(),
                "keeps": {name: part.state_dict() for name, part in self.state.items()},
            },
        )
        self.saved_at = time.monotonic()

    def is_due(self, done: int, steps: int) -> bool:
        """Whether to save after `done` of `steps` updates."""
        return done % self.every == 0 or done == steps or time.monotonic() - self.saved_at >= SAVE_SECONDS

    def _restore(self, saved: dict[str, Any]) -> None:
        if saved["owner"] != self.run_id:
            raise self._misfit(f"belongs to {saved['owner']}, this run is {self.run_id}")
        self.trace = [Step(**step) for step in saved["trace"]]
        self.epoch, self.batches_consumed = saved["position"]
        self.pass_state = saved["pass_state"]
        for name, part in self.state.items():
            try:
                part.load_state_dict(saved["keeps"][name])
            except (RuntimeError, ValueError, KeyError) as error:
                reason = " ".join(str(error).split())[:160]
                raise self._misfit(f"does not fit this run's {name} ({reason})") from error
        _set_random_state(saved["random_state"])

    def _misfit(self, reason: str) -> ValueError:
        return ValueError(f"checkpoint={str(self.folder)!r} {reason}: give another folder, or delete that one")

    def stream(self, batches: Iterable) -> Iterator[Any]:
        """Endless passes over `batches`, from the batch after the last one taken."""
        present = self._replay(batches) if self.batches_consumed else self._begin(batches)
        while True:
            for batch in present:
                self.batches_consumed += 1
                yield batch
            if not self.batches_consumed:
                raise ValueError("Task.batches is empty: give at least one batch")
            present = self._begin(batches)

    def _begin(self, batches: Iterable) -> Iterator[Any]:
        states = [generator.get_state() for generator in generators(batches)]
        self.epoch, self.batches_consumed, self.pass_state = self.epoch + 1, 0, {**_random_state(), "own": states}
        return iter(batches)

    def _replay(self, batches: Iterable) -> Iterator[Any]:
        """The interrupted pass, begun again from its own generators, without the batches that were taken."""
        now = _random_state()
        _set_random_state(self.pass_state)
        for generator, state in zip(generators(batches), self.pass_state["own"], strict=False):
            generator.set_state(state)
        present = iter(batches)
        replayed = sum(1 for _ in islice(present, self.batches_consumed))
        if replayed < self.batches_consumed:
            raise self._misfit(
                f"was made with {self.batches_consumed} or more batches a pass, Task.batches holds {replayed}"
            )
        _set_random_state(now)
        return present


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

    `stage.state` must hold whatever changes here, the optimiser and the schedule included, for a run to be resumable.
    A loss that is not finite raises FloatingPointError before the update, weights that are not finite are never saved:
    the last checkpoint stays.
    """
    stream = stage.stream(batches)
    done = len(stage.trace)
    with tqdm(total=steps, initial=done, desc=stage.name, disable=not progress, leave=False) as bar:
        for index in range(done, steps):
            batch = next(stream)
            terms = _terms(loss_terms, batch, stage, index)
            total = torch.stack([term.reshape(()) for term in terms.values()]).sum()
            if not torch.isfinite(total):
                raise FloatingPointError(_not_finite(stage, index, terms, batch))
            if _REHEARSING.get():
                raise _Rehearsed
            optimiser.zero_grad(set_to_none=True)
            total.backward()
            optimiser.step()
            stage.zeros.apply()
            if schedule is not None:
                schedule.step()
            step = Step(stage.name, index, {name: float(term.detach()) for name, term in terms.items()})
            stage.trace.append(step)
            yield step
            bar.update()
            if stage.is_due(index + 1, steps):
                if not _is_finite(p for group in optimiser.param_groups for p in group["params"]):
                    raise FloatingPointError(
                        f"{stage.name} step {index}: weights are not finite; lower the learning rates{_kept(stage)}"
                    )
                stage.save()


def _terms(loss_terms: Callable, batch: Any, stage: Stage, index: int) -> Mapping[str, torch.Tensor]:
    """The terms of a batch; what torch says of data that cannot be learned from, with the remedy."""
    try:
        return loss_terms(batch)
    except (ValueError, IndexError) as error:
        words = str(error)
        if "more than 1 value per channel" in words:
            cause = SINGLE
        elif isinstance(error, IndexError) and "out of bounds" in words:
            cause = (
                f"a label is not one of the model's classes ({words.rstrip('. ')}): correct the labels of Task.batches"
            )
        else:
            raise
        raise ValueError(f"{stage.name} step {index}: {cause}{_kept(stage)}") from error


def _not_finite(stage: Stage, index: int, terms: Mapping[str, torch.Tensor], batch: Any) -> str:
    names = ", ".join(name for name, term in terms.items() if not math.isfinite(float(term.detach())))
    parts = batch if isinstance(batch, (tuple, list)) else [batch]
    broken = not _is_finite(part for part in parts if isinstance(part, torch.Tensor))
    begun = "lower the learning rates" if index else "the network gives such numbers before any step: check its weights"
    remedy = "the batch holds NaN or infinite values: clean the data" if broken else begun
    return f"{stage.name} step {index}: {names or 'the loss'} is not finite; {remedy}{_kept(stage)}"


def _kept(stage: Stage) -> str:
    saved = stage.folder is not None and store.exists(stage.folder, stage.name)
    return f"; the last checkpoint is in {stage.folder}" if saved else ""


def _is_finite(tensors: Iterable[torch.Tensor]) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def _learned(parts: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The weights that the optimisers among these parts move."""
    for part in parts:
        if isinstance(part, torch.optim.Optimizer):
            yield from (weight for group in part.param_groups for weight in group["params"])


def generators(batches: Iterable) -> list[torch.Generator]:
    """The random generators that a DataLoader was given, which are not the global ones."""
    given = (getattr(part, "generator", None) for part in (batches, getattr(batches, "sampler", None)))
    return [generator for generator in given if isinstance(generator, torch.Generator)]


def _random_state() -> dict[str, Any]:
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, gauss],
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
