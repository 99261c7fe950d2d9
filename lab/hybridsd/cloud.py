"""The cloud half as a service, and the client that the edge asks: bodies are hand-offs, both ways."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core import service
from .handoff import Handoff, advance
from .pipeline import HybridPipeline, HybridSampler

PATH = "/v1/steps"
MAX_STEPS, MAX_IMAGES = 200, 16


def request_digest(body: bytes, query: Mapping[str, str]) -> str:
    """The digest of all that a request asks: its hand-off and its query. The answer repeats it."""
    return hashlib.sha256(json.dumps(sorted(query.items())).encode() + b"\n" + body).hexdigest()


def fingerprint(pipeline: HybridPipeline) -> str:
    """Twelve hex digits of what both sides must share beside the scheduler: the latent's shape and the words."""
    words = [sorted(tokenizer.get_vocab().items()) for tokenizer in pipeline.text.tokenizers]
    unet: Any = pipeline.unets[0]
    latent = [unet.config[name] for name in ("in_channels", "sample_size", "cross_attention_dim")]
    return hashlib.sha256(json.dumps([latent, words]).encode()).hexdigest()[:12]


def application(pipeline: HybridPipeline, token: str | None = None, limits: service.Limits | None = None) -> Any:
    """The service of this pipeline's first U-Net, an ASGI application."""
    mark = fingerprint(pipeline)

    def work(body: bytes, query: Mapping[str, str]) -> bytes:
        state = Handoff.from_bytes(body)
        until = _until(state, query)
        if query.get("mark", mark) != mark:
            raise service.RequestRefused(
                409, f"the models differ: latents or words are {query['mark']} there, {mark} here"
            )
        _validate_prompt(state, pipeline)
        _validate_latent(state, pipeline)
        cond = pipeline.conditioning(state.prompt, state.guidance, zeros=query.get("zeros") == "1")
        after = advance(state, pipeline.unets[0], pipeline.scheduler, cond, until)
        return replace(after, asked=request_digest(body, query)).to_bytes(int8=query.get("int8") == "1")

    health = {"service": "hybridsd", "mark": mark, "steps": MAX_STEPS, "pictures": MAX_IMAGES, **_size(pipeline)}
    return service.application(work, PATH, health, token, limits or service.Limits())


def _size(pipeline: HybridPipeline) -> dict[str, Any]:
    """The first U-Net's parameters, and its MACs of a step without and with guidance."""
    macs = []
    for guidance in (1.0, 2.0):
        sampler = HybridSampler(pipeline, ["a"], guidance)
        latent, _ = sampler.noise(2)
        parameters, step_macs = sampler.denoisers[0].size(latent, sampler.cond)
        macs.append(int(step_macs))
    return {"parameters": parameters, "macs": macs}


def _until(state: Handoff, query: Mapping[str, str]) -> int:
    """The step that the request asks for, within the limits."""
    until = query.get("until", "")
    if not until.isdigit() or not state.index <= int(until) <= state.steps:
        raise ValueError(f"until={until!r} is not allowed: give a step in {state.index}..{state.steps}")
    if int(until) - state.index > MAX_STEPS:
        raise ValueError(f"{until} steps are too many: at most {MAX_STEPS}")
    if len(state.latent) > MAX_IMAGES:
        raise ValueError(f"{len(state.latent)} pictures are too many: at most {MAX_IMAGES}")
    return int(until)


def _validate_prompt(state: Handoff, pipeline: HybridPipeline) -> None:
    """ValueError unless the prompt is in this pipeline's tokens."""
    kinds = [
        {name: (x.shape[1:], x.dtype) for name, x in tokens.items()}
        for tokens in (state.prompt, pipeline.text.tokens(["a"]))
    ]
    if kinds[0] != kinds[1]:
        raise ValueError("the hand-off's prompt is not in this model's tokens")
    encoders: list[Any] = list(pipeline.text.encoders)
    words = min(encoder.get_input_embeddings().num_embeddings for encoder in encoders)
    if any(int(x.max()) >= words for x in state.prompt.values()):
        raise ValueError(f"the hand-off's prompt has token ids beyond {words - 1}")


def _validate_latent(state: Handoff, pipeline: HybridPipeline) -> None:
    """ValueError unless the latent is one of this pipeline's."""
    noise, _ = pipeline.noise(1, 0, state.steps)
    if (state.latent.shape[1:], state.latent.dtype) != (noise.shape[1:], noise.dtype):
        kind = str(state.latent.dtype).removeprefix("torch.")
        raise ValueError(f"the hand-off's latent is {tuple(state.latent.shape[1:])} {kind}, this model takes another")


class CloudClient(service.ServiceClient):
    """Asks a cloud for steps.

    `token` left out is the environment's LAB_TOKEN; `seconds` is the time for one whole answer. `mark` is the
    `fingerprint` of the models here, '' to ask without it.
    """

    mark = ""

    def half(self, state: Handoff, until: int, *, int8: bool = False, zeros: bool = True) -> tuple[Handoff, int]:
        """The hand-off before step `until` and the bytes that came; ServiceError if it is slow, gone or wrong."""
        query = {"until": str(until), "int8": str(int(int8)), "zeros": str(int(zeros))}
        query |= {"mark": self.mark} if self.mark else {}
        body = state.to_bytes()
        content = self.request("POST", PATH, query=query, body=body)
        try:
            after = Handoff.from_bytes(content)
        except ValueError as error:
            raise service.ServiceError(f"it answered rubbish: {error}") from error
        if after.asked != request_digest(body, query) or after.index != until:
            raise service.ServiceError(f"it answered another question: {after!r}")
        return replace(after, asked=""), len(content)

    def about(self) -> dict[str, Any]:
        """What the cloud tells of itself: parameters, MACs of a step [without, with guidance], limits.

        ServiceError if it is none.
        """
        try:
            facts = json.loads(self.request("GET", "/health"))
            plain, guided = facts["macs"]
            numbers = [plain, guided, facts["parameters"], facts["pictures"]]
            if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in numbers):
                raise ValueError(f"{numbers} are no counts")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise service.ServiceError(
                f"{self.url} is no cloud of Hybrid SD: {type(error).__name__} {error}"
            ) from error
        return facts


def serve(model: str | Path | None, host: str, port: int, token: str | None = None, names: Sequence[str] = ()) -> None:
    """Serve a pipeline's U-Net until stopped; `model` left out is the embedded one.

    A token left out is made and printed. `names` are further names of this machine.
    """
    from .prompts import embedded

    token = service.announced(host, port, token)
    pipeline = embedded() if model is None else HybridPipeline.from_pretrained(model)
    service.serve(application(pipeline, token, service.Limits(names=(host, *names))), host, port)
