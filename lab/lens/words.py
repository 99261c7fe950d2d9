"""Words as maps: where a diffusion model's cross-attention puts each word of a prompt, over the steps."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.task import evaluating
from ..ui import Control, Explorer, Frame, raster, svg
from .attribution import correlation
from .concepts import with_fresh_weights

_STRIP, _LONGEST = 6, 64  # steps that are shown side by side; px of a map


def cross_attention(model: nn.Module, run: Callable[[nn.Module], Any]) -> Tensor:
    """How every place of a latent weighs the tokens of a text, in each call of a model: (calls, N, tokens, h, w).

    `run(model)` asks it as often as it likes, with latents (N, C, H, W) of one size. Read are all attentions of queries
    from the latent and keys from a text (`to_q`, `to_k`, `heads` and a call with `encoder_hidden_states`, as diffusers
    has them): the mean over their heads and over the layers, each layer's map stretched to the largest, as in DAAM
    (Tang et al., ACL 2023, arXiv 2210.04885), which adds over steps as well. A place's weights sum to 1 over the
    tokens. ValueError in one line for a model without such attention, and where nothing was asked.
    """
    calls: list[list[Tensor]] = []
    with torch.no_grad(), evaluating(model), _read(model, calls):
        run(model)
    if not calls or not all(calls):
        raise ValueError(f"{type(model).__name__} was asked {len(calls)} times and has shown no attention to a text")
    return torch.stack([_mean(layers) for layers in calls])


def words(
    models: Mapping[str, nn.Module],
    run: Callable[[nn.Module], Any],
    places: Mapping[str, Sequence[int]],
    images: Tensor | None = None,
    *,
    seed: int = 0,
) -> Explorer:
    """An explorer of words to click: where each model's cross-attention puts a word, step by step, and its control.

    `models` by name are asked alike by `run(model)`, with one latent, once a step. `places` are the tokens of each
    word. `images` (steps, 3, H, W) is what the latent shows. The control is the same model with fresh weights: what is
    alike in both is how attention falls, not what was learned.
    """
    if not models or not places:
        raise ValueError("there is nothing to see: give one model and one word, or more")
    by_model = {name: _both(model, run, seed) for name, model in models.items()}  # (steps, tokens, h, w) each
    steps = {len(maps) for pair in by_model.values() for maps in pair}
    if len(steps) > 1 or (images is not None and steps != {len(images)}):
        raise ValueError(
            f"the models were asked {sorted(steps)} times: ask all alike, and give a picture for each step"
        )
    count = steps.pop()
    strip = np.unique(np.linspace(0, count - 1, min(_STRIP, count)).round().astype(int)).tolist()
    shown = None if images is None else images.float().cpu().numpy()

    def draw(word: str, step: int) -> Frame:
        parts = [_pressable(list(places), word)]
        if shown is not None:
            parts.append(raster.photo(shown[step - 1], f"step {step} of {count}", 0.0, 1.0, longest=2 * _LONGEST))
        facts: dict[str, str] = {}
        for name, pair in by_model.items():
            maps, control = (x[:, list(places[word])].sum(1) for x in pair)  # (steps, h, w) each
            for title, of in ((f"{name}: {word!r}", maps), (f"{name}, control: fresh weights", control)):
                parts.append(_row(of, title, strip, step))
            facts |= {
                f"{name}, of the attention": f"{maps[step - 1].mean():.1%}",
                f"{name}, correlation with control": correlation(maps[step - 1].ravel(), control[step - 1].ravel()),
            }
        return Frame("".join(parts), facts)

    controls = {"word": Control(list(places)), "step": Control(range(1, count + 1), start=(count + 1) // 2)}
    return Explorer(draw, controls, title="where its words go")


def _both(model: nn.Module, run: Callable[[nn.Module], Any], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The maps (calls, tokens, h, w) of the last example, of the model and of its control."""
    first, second = (cross_attention(net, run)[:, -1] for net in (model, with_fresh_weights(model, seed)))
    return first.float().cpu().numpy(), second.float().cpu().numpy()


@contextmanager
def _read(model: nn.Module, calls: list[list[Tensor]]) -> Iterator[None]:
    """For a `with` block, what all attention to a text weighs, call by call: (N, tokens, h, w) each."""
    sides: list[tuple[int, int]] = []

    def asked(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        latent = next(x for x in (*inputs, *named.values()) if isinstance(x, Tensor) and x.ndim == 4)
        sides.append((latent.shape[2], latent.shape[3]))
        calls.append([])

    def attended(module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        text = named.get("encoder_hidden_states", inputs[1] if len(inputs) > 1 else None)
        if text is not None:
            calls[-1].append(_on_grid(_weights(module, inputs[0], text), sides[-1]))

    with ExitStack() as hooks:
        hooks.callback(model.register_forward_pre_hook(asked, with_kwargs=True).remove)
        for module in model.modules():
            if all(hasattr(module, name) for name in ("to_q", "to_k", "heads")):
                hooks.callback(module.register_forward_pre_hook(attended, with_kwargs=True).remove)
        yield


def _weights(module: Any, latent: Tensor, text: Tensor) -> Tensor:
    """The mean over heads of softmax(q k / sqrt(d)), (N, places, tokens), of places (N, places, C), text (N, L, D)."""
    query, key = (x.unflatten(-1, (module.heads, -1)).transpose(1, 2) for x in (module.to_q(latent), module.to_k(text)))
    return (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1).mean(1)


def _on_grid(weights: Tensor, sides: tuple[int, int]) -> Tensor:
    """Weights (N, places, tokens) of a latent of sides (H, W) as maps (N, tokens, h, w)."""
    shrunk = math.sqrt(sides[0] * sides[1] / weights.shape[1])
    h, w = (round(side / shrunk) for side in sides)
    if h * w != weights.shape[1]:
        raise ValueError(f"{weights.shape[1]} places of attention are no grid of a latent of {sides}")
    return weights.transpose(1, 2).unflatten(2, (h, w))


def _mean(layers: Sequence[Tensor]) -> Tensor:
    """The mean of maps (N, tokens, h, w), the smaller ones stretched to the largest."""
    largest = max((maps.shape[2:] for maps in layers), key=math.prod)
    stretched = [nn.functional.interpolate(x, largest, mode="bilinear", align_corners=False) for x in layers]
    return torch.stack(stretched).mean(0)


def _pressable(names: Sequence[str], chosen: str) -> str:
    """The words in a row, each a button."""
    x, top, shapes = 0.0, svg.HEAD, []
    for name in names:
        width = svg.text_width(name) * 1.1 + 14
        label = svg.text(x + 7, top + 17, name, "strong" if name == chosen else "")
        shapes.append(svg.target((x, top, width, 26), name, name == chosen, label, word=name))
        x += width + 4
    title = "the words: click one"
    return svg.document(max(x, svg.title_width(title)), top + 30, title, title, shapes, alone=True)


def _row(maps: np.ndarray, title: str, steps: Sequence[int], present: int) -> str:
    """Maps (steps, h, w) of some steps side by side on one scale, each a button."""
    chosen = min(range(len(steps)), key=lambda i: abs(steps[i] + 1 - present))
    return raster.grid(
        maps[list(steps)],
        title,
        "share of a place's attention",
        columns=len(steps),
        longest=_LONGEST,
        scale=raster.Scale.of(maps),
        names=[f"step {step + 1}" for step in steps],
        press=lambda k: {"step": steps[k] + 1},
        pressed=chosen,
    )
