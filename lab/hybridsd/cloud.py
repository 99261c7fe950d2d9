"""The cloud half as a service, and the client that the edge asks: bodies are hand-offs, both ways."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..core import service
from ..core.machine import device_of
from . import families, wire
from .adapters import add_lora
from .batching import SharedModel
from .handoff import Handoff, advance
from .pipeline import HybridPipeline
from .sampler import HybridSampler
from .sampling import placed
from .solvers import rehearsal

PATH = "/v1/steps"
MAX_STEPS, MAX_IMAGES, MAX_BATCH = 200, 16, 64
_REHEARSED, _MAX_MEMORY = 25, 16  # steps after which a solver's memory is full; latents that none exceeds


def request_digest(body: bytes, query: Mapping[str, str]) -> str:
    """The digest of all that a request asks: its hand-off and its query. The answer repeats it."""
    return hashlib.sha256(json.dumps(sorted(query.items())).encode() + b"\n" + body).hexdigest()


def fingerprint(pipeline: HybridPipeline) -> str:
    """Twelve hex digits of what both sides must share beside the scheduler: the latent's shape and the words."""
    words = [sorted(tokenizer.get_vocab().items()) for tokenizer in pipeline.text.tokenizers]
    unet: Any = pipeline.unets[0]
    latent = [unet.config.get(name) for name in (*families.family(unet).shared, "sample_size")]
    return hashlib.sha256(json.dumps([latent, words]).encode()).hexdigest()[:12]


def application(
    pipeline: HybridPipeline, token: str | None = None, limits: service.Limits | None = None, batch: int = 1
) -> Any:
    """The service of this pipeline's first model, an ASGI application.

    With a `batch` above 1 so many requests share the model's calls where their shapes agree; their results may then
    differ in the last bits from those of a request alone.
    """
    mark, (images, most) = fingerprint(pipeline), capacity(pipeline)
    unet, where = SharedModel(pipeline.unets[0], 2 * batch * images), placed(pipeline.unets[0])
    model: Any = unet if batch > 1 else pipeline.unets[0]
    kinds = _kinds(pipeline.text.tokens(["a"]))

    def work(body: bytes, query: Mapping[str, str]) -> bytes:
        state = Handoff.from_bytes(body)
        until = _until(state, query, images)
        if query.get("mark", mark) != mark:
            raise service.RequestRefused(
                409, f"the models differ: latents or words are {query['mark']} there, {mark} here"
            )
        if _kinds(state.prompt) != kinds:
            raise ValueError("the hand-off's prompt is not in this model's tokens")
        _validate_words(state, pipeline)
        _validate_latent(state, pipeline, images)
        sides = (state.latent.shape[2], state.latent.shape[3])
        cond = pipeline.conditioning(state.prompt, state.guidance, query.get("zeros") == "1", sides)
        scheduler = pipeline.scheduler_at(sides, _first_step(state))
        with unet.in_use():
            after = advance(replace(state, error=0.0).to(*where), model, scheduler, cond.to(*where), until)
        return replace(after, asked=request_digest(body, query)).to_bytes(int8=query.get("int8") == "1")

    health = {
        "service": "hybridsd",
        "mark": mark,
        "steps": MAX_STEPS,
        "pictures": images,
        "batch": batch,
        **_size(pipeline),
    }
    health |= {"bytes": most, "dtype": str(where[1]).removeprefix("torch.")}
    limits = limits or service.Limits()
    limits = replace(limits, body=most, at_once=batch, queue=max(limits.queue, batch))
    return service.application(work, PATH, health, token, limits)


def capacity(pipeline: HybridPipeline) -> tuple[int, int]:
    """How many pictures a request may hold, and the bytes of its hand-off: latents, memory and token ids at their most.

    ValueError where the pipeline's scheduler cannot be handed over.
    """
    rehearsed = rehearsal(pipeline.scheduler_at(), _REHEARSED)
    if rehearsed.fault:
        raise ValueError(rehearsed.fault)
    latent, _ = pipeline.noise(1, 0, _REHEARSED)
    tokens = sum(x.numel() for x in pipeline.text.tokens(["a"]).values())
    painting = 4 * latent.numel() + math.prod(latent.shape[2:])  # a picture's latent and its mask
    each = 4 * latent.numel() * (1 + max(map(_latents, rehearsed.memory))) + painting + 8 * tokens
    rest = wire.MAX_HEADER + (128 << 10)  # lists of a number a step, a generator's state
    images = max(1, min(MAX_IMAGES, (wire.MAX_BYTES - rest) // each))
    return images, images * each + rest


def _latents(memory: Any) -> int:
    """How many latents a solver remembers."""
    if isinstance(memory, Mapping | list):
        return sum(map(_latents, memory.values() if isinstance(memory, Mapping) else memory))
    return int(isinstance(memory, torch.Tensor) and memory.ndim > 1)


def _size(pipeline: HybridPipeline) -> dict[str, Any]:
    """The first U-Net's parameters, and its MACs of a step without and with guidance."""
    macs = []
    for guidance in (1.0, 2.0):
        sampler = HybridSampler(pipeline, ["a"], guidance)
        latent, _ = sampler.noise(25)
        parameters, step_macs = sampler.denoisers[0].size(latent, sampler.cond)
        macs.append(int(step_macs))
    return {"parameters": parameters, "macs": macs}


def _until(state: Handoff, query: Mapping[str, str], images: int) -> int:
    """The step that the request asks for, within the limits."""
    until = query.get("until", "")
    if not until.isdigit() or not state.index <= int(until) <= state.steps:
        raise ValueError(f"until={until!r} is not allowed: give a step in {state.index}..{state.steps}")
    if int(until) - state.index > MAX_STEPS:
        raise ValueError(f"{until} steps are too many: at most {MAX_STEPS}")
    if len(state.latent) > images:
        raise ValueError(f"{len(state.latent)} pictures are too many: at most {images}")
    return int(until)


def _first_step(state: Handoff) -> int:
    """The first step of a picture that is drawn over, 0 of one that is drawn from noise."""
    further = state.config.get("with", {})
    first = further.get("begin", 0) if isinstance(further, dict) else 0
    if type(first) is not int or not 0 <= first <= state.index:
        raise ValueError(f"the hand-off's first step {first!r:.40} is not allowed: give one of 0..{state.index}")
    return first


def _kinds(tokens: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What token ids (B, L) of one pipeline have in common: their names, lengths and types."""
    return {name: (x.shape[1:], x.dtype) for name, x in tokens.items()}


def _validate_words(state: Handoff, pipeline: HybridPipeline) -> None:
    """ValueError unless all of the prompt's token ids are words of this pipeline's encoders."""
    encoders: list[Any] = list(pipeline.text.encoders)
    words = min(encoder.get_input_embeddings().num_embeddings for encoder in encoders)
    if any(int(x.max()) >= words for x in state.prompt.values()):
        raise ValueError(f"the hand-off's prompt has token ids beyond {words - 1}")


def _validate_latent(state: Handoff, pipeline: HybridPipeline, images: int) -> None:
    """ValueError unless the latent is one of this pipeline's, and no more than so many of its pictures together."""
    unet, (_, c, h, w) = pipeline.unets[0], state.latent.shape
    unit, area = families.patch(unet), math.prod(families.sides(unet))
    if c != families.channels(unet) or h % unit or w % unit:
        raise ValueError(
            f"the hand-off's latent is {(c, h, w)}: this model takes {families.channels(unet)} channels and sides that "
            f"are multiples of {unit}"
        )
    if len(state.latent) * h * w > images * area:
        raise ValueError(
            f"{len(state.latent)} pictures of {h} x {w} latents are too large: at most {images} times {area}"
        )


class CloudClient(service.ServiceClient):
    """Asks a cloud for steps.

    `token` left out is the environment's LAB_TOKEN; `seconds` is the time for one whole answer. `mark` is the
    `fingerprint` of the models here, '' to ask without it.
    """

    mark = ""

    def half(self, state: Handoff, until: int, *, int8: bool = False, zeros: bool = True) -> tuple[Handoff, int, int]:
        """The hand-off before step `until`, the bytes that went and came; ServiceError if it is slow, gone or wrong."""
        query = {"until": str(until), "int8": str(int(int8)), "zeros": str(int(zeros))}
        query |= {"mark": self.mark} if self.mark else {}
        body = state.to_bytes()
        # the memory grows while steps are taken, to some latents: what is longer is no answer to this
        most = min(wire.MAX_BYTES, wire.MAX_HEADER + len(body) + (1 + _MAX_MEMORY) * 4 * state.latent.numel())
        content = self.request("POST", PATH, query=query, body=body, most=most)
        try:
            after = Handoff.from_bytes(content)
        except ValueError as error:
            raise service.ServiceError(f"it answered rubbish: {error}") from error
        if after.asked != request_digest(body, query) or after.index != until:
            raise service.ServiceError(f"it answered another question: {after!r}")
        return replace(after, asked=""), len(body), len(content)

    def about(self) -> dict[str, Any]:
        """What the cloud tells of itself: parameters, MACs of a step [without, with guidance], limits.

        ServiceError if it is none.
        """
        try:
            facts = json.loads(self.request("GET", "/health", most=wire.MAX_HEADER))
            plain, guided = facts["macs"]
            numbers = [plain, guided, facts["parameters"], facts["pictures"]]
            if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in numbers):
                raise ValueError(f"{numbers} are no counts")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise service.ServiceError(
                f"{self.url} is not a Hybrid SD cloud: {type(error).__name__} {error}"
            ) from error
        return facts


def serve(
    model: str | Path | None,
    host: str,
    port: int,
    token: str | None = None,
    names: Sequence[str] = (),
    *,
    device: str | None = None,
    dtype: str = "float32",
    lora: str | None = None,
    batch: int = 1,
) -> None:
    """Serve a pipeline's U-Net until stopped; `model` left out is the embedded one.

    A token left out is made and printed. `names` are further names of this machine. The model computes on `device`, the
    CPU if it is left out, in `dtype`: 'float32', 'float16' or 'bfloat16'. `lora` is the folder of an adapter that is
    added to it. Up to `batch` requests of equal shapes share a call of the model.
    """
    from .prompts import embedded

    if dtype not in wire.DTYPES:
        raise ValueError(f"dtype={dtype!r} is not allowed: give one of {', '.join(map(repr, wire.DTYPES))}")
    if type(batch) is not int or not 1 <= batch <= MAX_BATCH:
        raise ValueError(f"batch={batch!r} is not allowed: give 1..{MAX_BATCH} requests that share a call")
    where, limits = device_of(device or "cpu"), service.Limits(names=(host, *names))
    token = service.announced(host, port, token)
    precision = wire.DTYPES[dtype]
    pipeline = embedded() if model is None else HybridPipeline.from_pretrained(model, dtype=precision)
    if lora is not None:
        add_lora(pipeline.unets[0], lora)
    service.serve(application(pipeline.to(where, precision), token, limits, batch), host, port, limits)
