"""A model that several requests ask: calls of equal shapes that come together are run as one.

The result of a call may differ in its last bits from what it is alone, for kernels need not sum a row of a large batch
as they sum it in a small one: so a service batches only where it is told to.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from . import families

_PATIENCE, _LEAST, _MOST = 0.2, 0.002, 0.05  # of a call's own time, and seconds, that it waits for others


class _Call:
    """One call's inputs by name, (B, ...) each, and what has become of it."""

    def __init__(self, inputs: Mapping[str, torch.Tensor]) -> None:
        self.inputs, self.rows = inputs, len(inputs["latent"])
        self.shapes = {name: (x.shape[1:], x.dtype) for name, x in inputs.items()}
        self.output: torch.Tensor | None = None
        self.error: Exception | None = None

    @property
    def is_done(self) -> bool:
        return self.output is not None or self.error is not None


class SharedModel(nn.Module):
    """A denoiser for several threads: one of them runs what has come meanwhile, at most `most` rows at a time.

    `shared` is the model itself. A thread says by `in_use` that it will ask; a call waits a little for the calls of the
    others that do, a fifth of the last call's time and no longer than 50 ms.
    """

    def __init__(self, shared: Any, most: int) -> None:
        super().__init__()
        self.shared, self.config, self.most = shared, shared.config, most
        self.condition, self.calls, self.users = threading.Condition(), list[_Call](), 0
        self.is_running, self.seconds, self.sizes = False, 0.0, list[int]()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """A block in which this thread asks the model again and again."""
        with self.condition:
            self.users += 1
        try:
            yield
        finally:
            with self.condition:
                self.users -= 1
                self.condition.notify_all()

    def predict(
        self,
        latent: torch.Tensor,
        t: torch.Tensor,
        text: torch.Tensor,
        added: Mapping[str, torch.Tensor],
        emb: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """The output (B, C, h, w) of one call, which may be run among others; `t` is () or (B,)."""
        inputs = {"latent": latent, "t": t.to(latent.device).expand(len(latent)), "text": text}
        inputs |= {f"added.{name}": x for name, x in added.items()} | {f"emb.{name}": x for name, x in emb.items()}
        call = _Call(inputs)
        with self.condition:
            self.calls.append(call)
            self.condition.notify_all()
        while not call.is_done:
            batch = self._next(call)
            if batch:
                self._run(batch)
        if call.error is not None:
            raise call.error
        assert call.output is not None  # or it would not be done
        return call.output

    def _next(self, call: _Call) -> list[_Call]:
        """What this thread is to run: calls like its own, or none if another thread has run it meanwhile."""
        with self.condition:
            self.condition.wait_for(lambda: call.is_done or not self.is_running)
            if call.is_done:
                return []
            self.is_running = True
            patience = min(_MOST, max(_LEAST, _PATIENCE * self.seconds))
            self.condition.wait_for(lambda: len(self.calls) >= self.users, patience)
            batch, rows = [call], call.rows
            for other in self.calls:
                if other is not call and other.shapes == call.shapes and rows + other.rows <= self.most:
                    batch, rows = [*batch, other], rows + other.rows
            self.calls = [other for other in self.calls if other not in batch]
            return batch

    def _run(self, batch: Sequence[_Call]) -> None:
        start = time.perf_counter()
        try:
            self._together(batch)
        finally:
            with self.condition:
                self.is_running, self.seconds = False, time.perf_counter() - start
                self.sizes = [*self.sizes[-999:], len(batch)]
                self.condition.notify_all()

    def _together(self, batch: Sequence[_Call]) -> None:
        """Run the calls as one; if that fails, each by itself, so that none fails for another."""
        try:
            inputs = {name: torch.cat([call.inputs[name] for call in batch]) for name in batch[0].inputs}
            outputs = self._output(inputs).split([call.rows for call in batch])
        except Exception as error:
            if len(batch) > 1:
                for call in batch:
                    self._together([call])
            else:
                batch[0].error = error
            return
        for call, output in zip(batch, outputs, strict=True):
            call.output = output

    def _output(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        added, emb = (
            {name.removeprefix(part): x for name, x in inputs.items() if name.startswith(part)}
            for part in ("added.", "emb.")
        )
        kind = families.family(self.shared)
        return kind.predict(self.shared, inputs["latent"], inputs["t"], inputs["text"], added, emb)
