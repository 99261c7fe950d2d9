"""How much of each layer a small U-Net keeps: what the pictures' latents lose without it, and the released rule.

The released code has three defects, each a name in `paper_compat`, none of them on by default:
'no reseed': latents before and after are drawn from different noise, so that scores hold the noise's difference too;
'extra unit': a tenth residual block that is not there is ranked with the others, and takes one of their places;
'shifted slots': each self-attention's ratio goes to the self-attention ranked before it, the last ranked keeps 0.5.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..core.progress import tqdm
from . import equations as eq
from .blocks import attentions, kept_width, narrowed, residual_blocks

DEFECTS = ("no reseed", "extra unit", "shifted slots")
EXTRA = "extra"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Widths are rounded up to `unit`; at `least` or below a width is left alone, at `heads` or fewer an attention.

    The defaults are the paper's, for widths of 320 and more; take 8 or 16, and 0, for small networks.
    """

    unit: int = 32
    least: int = 64
    heads: int = 2
    paper_compat: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = [name for name in self.paper_compat if name not in DEFECTS]
        if unknown:
            raise ValueError(f"paper_compat: {', '.join(unknown)} is not known: give any of {', '.join(DEFECTS)}")
        if self.unit < 1:
            raise ValueError(f"unit={self.unit} is not allowed: give an integer >= 1")


def units(unet: Any) -> dict[str, Any]:
    """What can be narrowed, by its name in the U-Net: residual blocks, then attentions; 27 in BK-SDM-Tiny."""
    kept = [*residual_blocks(unet), *attentions(unet)]
    names = {id(module): name for name, module in unet.named_modules()}
    return {names[id(module)]: module for module in kept}


def pruned(unet: Any, ratios: Mapping[str, float], rules: Rules = Rules()) -> Any:
    """A copy that keeps `ratios[name]` of each unit named, and all of the others."""
    modules = units(unet)
    unknown = [name for name in ratios if name not in modules]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not a unit of this U-Net: give names that units(unet) lists")
    wrong = [f"{name}={ratio!r}" for name, ratio in ratios.items() if not 0 < ratio <= 1]
    if wrong:
        raise ValueError(f"ratios: {wrong[0]} is not allowed: give a number > 0 and <= 1")
    keep = [(module, ratios.get(name, 1.0)) for name, module in modules.items()]
    widths = [_width(module, ratio, rules) for module, ratio in keep if not _is_attention(module)]
    heads = [_heads(module, ratio, rules) for module, ratio in keep if _is_attention(module)]
    return narrowed(unet, widths, heads)


def significance_scores(
    unet: Any,
    sample: Callable[[Any, int], torch.Tensor],
    *,
    rules: Rules = Rules(),
    ratio: float = 0.5,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, float]:
    """Of every unit, what final latents lose when it alone keeps `ratio`, Card (11); higher is more important.

    `sample(unet, seed)` draws final latents (n, C, h, w) of the same n prompts, all randomness from `seed`; the paper
    takes 50 prompts of COCO, 25 steps, guidance 7.5.
    """
    before, scores = sample(unet, seed), {}
    names = [*units(unet), *([EXTRA] if "extra unit" in rules.paper_compat else [])]
    for i, name in enumerate(tqdm(names, desc="scores", disable=not progress, leave=False), 1):
        shown = unet if name == EXTRA else pruned(unet, {name: ratio}, rules)
        scores[name] = eq.significance(before, sample(shown, seed + i if "no reseed" in rules.paper_compat else seed))
    return scores


def keep_ratios(scores: Mapping[str, float], a: int = 19, b: int = 21, rules: Rules = Rules()) -> dict[str, float]:
    """The a least important units keep 0.25, those up to b 0.5, the rest 0.75; the paper's a and b are for 27 units."""
    if not 0 <= a <= b <= len(scores):
        raise ValueError(f"a={a}, b={b} are not allowed: give 0 <= a <= b <= {len(scores)}, the number of units")
    ranked = sorted(scores, key=lambda name: scores[name])
    ratios = {name: 0.25 if i < a else 0.5 if i < b else 0.75 for i, name in enumerate(ranked)}
    if "shifted slots" in rules.paper_compat:
        self_attentions = [name for name in ranked if name.endswith("attn1")]
        shifted = [*(ratios[name] for name in self_attentions[1:]), 0.5]
        ratios |= dict(zip(self_attentions, shifted, strict=True))
    return {name: ratio for name, ratio in ratios.items() if name != EXTRA}


def _is_attention(module: Any) -> bool:
    return hasattr(module, "to_q")


def _width(block: Any, ratio: float, rules: Rules) -> int:
    width = block.conv1.out_channels
    return width if ratio == 1 else min(width, kept_width(width, ratio, rules.unit, rules.least))


def _heads(attention: Any, ratio: float, rules: Rules) -> int:
    keep = int(attention.heads * ratio)
    return attention.heads if ratio == 1 or keep <= rules.heads else keep
