"""The cloud half as a service, and the client that the edge asks: bodies are hand-offs, both ways."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core import cost, service
from . import sweep
from .handoff import Handoff, advance
from .pipeline import Split

Failed = service.Failed
PATH = "/v1/steps"
MOST_STEPS, MOST_PICTURES = 200, 16


def asked(body: bytes, query: Mapping[str, str]) -> str:
    """The digest of all that a request asks: its hand-off and its query. The answer repeats it."""
    return hashlib.sha256(json.dumps(sorted(query.items())).encode() + b"\n" + body).hexdigest()


def fingerprint(split: Split) -> str:
    """Twelve hex digits of what both sides must share beside the scheduler: the latent's shape and the words."""
    words = [sorted(tokenizer.get_vocab().items()) for tokenizer in split.text.tokenizers]
    latent = [split.unets[0].config[name] for name in ("in_channels", "sample_size", "cross_attention_dim")]
    return hashlib.sha256(json.dumps([latent, words]).encode()).hexdigest()[:12]


def application(split: Split, token: str | None = None, limits: service.Limits | None = None) -> Any:
    """The service of this pipeline's first U-Net, an ASGI application."""
    mark = fingerprint(split)

    def work(body: bytes, query: Mapping[str, str]) -> bytes:
        state = Handoff.from_bytes(body)
        until = _until(state, query)
        if query.get("mark", mark) != mark:
            raise service.Refused(409, f"the models differ: latents or words are {query['mark']} there, {mark} here")
        expected = {name: (x.shape[1:], x.dtype) for name, x in split.text.tokens(["a"]).items()}
        if {name: (x.shape[1:], x.dtype) for name, x in state.prompt.items()} != expected:
            raise ValueError("the hand-off's prompt is not in this model's tokens")
        sizes = [encoder.get_input_embeddings().num_embeddings for encoder in split.text.encoders]
        if any(int(x.max()) >= min(sizes) for x in state.prompt.values()):
            raise ValueError(f"the hand-off's prompt has token ids beyond {min(sizes) - 1}")
        noise, _ = split.noise(1, 0, state.steps)
        if (state.latent.shape[1:], state.latent.dtype) != (noise.shape[1:], noise.dtype):
            kind = str(state.latent.dtype).removeprefix("torch.")
            raise ValueError(
                f"the hand-off's latent is {tuple(state.latent.shape[1:])} {kind}, this model takes another"
            )
        said = split.conditioning(state.prompt, state.guidance, zeros=query.get("zeros") == "1")
        made = advance(state, split.unets[0], split.scheduler, said, until)
        return replace(made, asked=asked(body, query)).to_bytes(int8=query.get("int8") == "1")

    macs = [int(sweep.price(split, guidance).cloud) for guidance in (1.0, 2.0)]  # a step without and with guidance
    size = {"parameters": cost.parameters(split.unets[0]), "macs": macs}
    health = {"service": "hybridsd", "mark": mark, "steps": MOST_STEPS, "pictures": MOST_PICTURES, **size}
    return service.application(work, PATH, health, token, limits or service.Limits())


def _until(state: Handoff, query: Mapping[str, str]) -> int:
    """The step that the request asks for, within the limits."""
    told = query.get("until", "")
    if not told.isdigit() or not state.index <= int(told) <= state.steps:
        raise ValueError(f"until={told!r} is not allowed: give a step in {state.index}..{state.steps}")
    if int(told) - state.index > MOST_STEPS:
        raise ValueError(f"{told} steps are too many: at most {MOST_STEPS}")
    if len(state.latent) > MOST_PICTURES:
        raise ValueError(f"{len(state.latent)} pictures are too many: at most {MOST_PICTURES}")
    return int(told)


class Client:
    """Asks a cloud for steps.

    `token` left out is the environment's LAB_TOKEN; `seconds` is the time for one whole answer.
    """

    Failed = service.Failed

    def __init__(self, url: str, token: str | None = None, seconds: float = 60.0) -> None:
        self.url, self.seconds, self.mark = url.rstrip("/"), seconds, ""
        self.token = token if token is not None else os.environ.get("LAB_TOKEN")

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def half(self, state: Handoff, until: int, *, int8: bool = False, zeros: bool = True) -> tuple[Handoff, int]:
        """The hand-off before step `until` and the bytes that came; Failed if the cloud is slow, gone or wrong."""
        query = {"until": str(until), "int8": str(int(int8)), "zeros": str(int(zeros))}
        query |= {"mark": self.mark} if self.mark else {}
        body = state.to_bytes()
        answer = self._asked("POST", PATH, query=query, body=body)
        try:
            made = Handoff.from_bytes(answer)
        except ValueError as error:
            raise Failed(f"it answered rubbish: {error}") from error
        if made.asked != asked(body, query) or made.index != until:
            raise Failed(f"it answered another question: {made!r}")
        return replace(made, asked=""), len(answer)

    def about(self) -> dict[str, Any]:
        """What the cloud says of itself: parameters, MACs of a step [without, with guidance], limits; Failed if not."""
        try:
            found = json.loads(self._asked("GET", "/health"))
            plain, guided = found["macs"]
            numbers = [plain, guided, found["parameters"], found["pictures"]]
            if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in numbers):
                raise ValueError(f"{numbers} are no counts")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Failed(f"{self.url} is no cloud of Hybrid SD: {type(error).__name__} {error}") from error
        return found

    def _asked(self, method: str, path: str, **what: Any) -> bytes:
        return service.asked(method, self.url + path, token=self.token, seconds=self.seconds, **what)


def serve(model: str | Path | None, host: str, port: int, token: str | None = None, names: Sequence[str] = ()) -> None:
    """Serve a pipeline's U-Net until stopped; `model` left out is the embedded one.

    A token left out is made and printed. `names` are further names of this machine.
    """
    from .prompts import embedded

    token = service.announced(host, port, token)
    split = embedded() if model is None else Split.from_pretrained(model)
    service.serve(application(split, token, service.Limits(names=(host, *names))), host, port)
