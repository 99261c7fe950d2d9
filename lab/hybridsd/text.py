"""What a prompt becomes: token ids, which cross the boundary, and a model's conditioning, of each family's encoders."""

import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .sampling import Conditioning

_TOKENISING = threading.Lock()  # a tokenizer keeps how it pads and cuts, which another thread would change
NO_LIMIT = 10**9  # tokens: a tokenizer that claims to read more does not know its limit
_LAYOUTS = {  # which of the encoders are T5's -> whose they are, tokens of T5's text
    (False,): ("sd", 0),
    (False, False): ("sdxl", 0),
    (False, False, True): ("sd3", 256),
    (False, True): ("flux", 512),
    (True,): ("pixart", 120),
}


def context_length(tokenizer: Any, encoder: nn.Module | None) -> int:
    """Tokens that a prompt has room for: the tokenizer's limit or the encoder's positions, whichever is less.

    transformers says 10^30 for a tokenizer that was stored without a limit. ValueError where neither has one.
    """
    positions = getattr(getattr(encoder, "config", None), "max_position_embeddings", None)
    limits = [n for n in (getattr(tokenizer, "model_max_length", None), positions) if n and 0 < n < NO_LIMIT]
    if not limits:
        raise ValueError(
            "the tokenizer has no model_max_length and the text encoder no max_position_embeddings: set "
            "tokenizer.model_max_length, 77 for CLIP"
        )
    return int(min(limits))


def token_ids(prompts: Sequence[str], tokenizer: Any, encoder: nn.Module | None, most: int = 0) -> torch.Tensor:
    """Token ids (B, L); words beyond what the tokenizer and its encoder read are cut off, with a warning of them.

    L is `most`, unless that is 0 or more than they read.
    """
    length = context_length(tokenizer, encoder)
    length = min(length, most) if most else length
    cut = {"truncation": True, "return_tensors": "pt"}
    with _TOKENISING:
        uncut = tokenizer(list(prompts), padding="longest", max_length=NO_LIMIT, **cut).input_ids
        padded = tokenizer(list(prompts), padding="max_length", max_length=length, **cut).input_ids
    if uncut.shape[1] > length:
        lost = [text for text in tokenizer.batch_decode(uncut[:, length - 1 : -1], skip_special_tokens=True) if text]
        warnings.warn(f"the prompt is cut to {length} tokens, without {'; '.join(lost)!r}", stacklevel=3)
    return padded


class Text(nn.Module):
    """Text encoders with their tokenizers: those of SD 1.x and LCM, SDXL, SD3, Flux or PixArt.

    `force_zeros`: where no negative prompt is given, zeros stand for its embedding. `most`: tokens that T5 reads of a
    prompt; 0 for what its family takes. `joint`: how wide the tokens of SD3 without its T5 are, for which zeros stand.
    """

    def __init__(
        self,
        encoders: Sequence[nn.Module],
        tokenizers: Sequence[Any],
        force_zeros: bool = False,
        most: int = 0,
        joint: int = 0,
    ) -> None:
        super().__init__()
        self.encoders, self.tokenizers, self.force_zeros = nn.ModuleList(encoders), list(tokenizers), force_zeros
        self.joint, layout = joint, tuple(_is_t5(encoder) for encoder in encoders) + (True,) * (joint > 0)
        if layout not in _LAYOUTS:
            kinds = ", ".join(type(encoder).__name__ for encoder in encoders)
            raise ValueError(f"text encoders {kinds} are no family's: give those of SD, SDXL, SD3, Flux or PixArt")
        self.family, length = _LAYOUTS[layout]
        self.most = most or length

    def tokens(self, prompts: Sequence[str], negative: str | Sequence[str] = "") -> dict[str, torch.Tensor]:
        """Token ids by name: what goes over the wire instead of embeddings, (B, L) each.

        `negative` is one text for all prompts, or one for each.
        """
        ids, negatives = {}, [negative] if isinstance(negative, str) else negative
        for i, (tokenizer, encoder) in enumerate(zip(self.tokenizers, self.encoders, strict=True)):
            most = self.most if _is_t5(encoder) else 0
            ids[f"tokens{i}"] = token_ids(self._written(prompts), tokenizer, encoder, most)
            without = token_ids(self._written(negatives), tokenizer, encoder, most)
            ids[f"negative{i}"] = without.expand(len(prompts), -1)
        return ids

    def places(self, prompt: str) -> dict[str, list[int]]:
        """The first encoder's tokens of a prompt as they are written, and where each stands, without what frames them.

        A token that is there again is numbered.
        """
        tokenizer, places = self.tokenizers[0], dict[str, list[int]]()
        ids = token_ids(self._written([prompt]), tokenizer, self.encoders[0])[0].tolist()
        for at, (index, token) in enumerate(zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)):
            if index not in tokenizer.all_special_ids:
                word = token.removesuffix("</w>").replace("\u2581", "").replace("\u0120", "")
                again = sum(name.partition(" (")[0] == word for name in places)
                places[f"{word} ({again + 1})" if again else word] = [at]
        return places

    @torch.no_grad()
    def conditioning(
        self, tokens: Mapping[str, torch.Tensor], guidance: float, size: tuple[int, int], zeros: bool = False
    ) -> Conditioning:
        """The models' conditioning for these tokens (B, L); `size` is the picture's (H, W), which some take too.

        `zeros`: no negative prompt was given, for which SDXL takes zeros instead of an empty text's embedding.
        """
        given = [[tokens[f"{name}{i}"] for i in range(len(self.encoders))] for name in ("tokens", "negative")]
        text, added = self._encoded(given[0])
        if zeros and self.force_zeros:
            negative, added_negative = torch.zeros_like(text), {name: torch.zeros_like(x) for name, x in added.items()}
        else:
            negative, added_negative = self._encoded(given[1])
        further = self._sizes(size, text)
        return Conditioning(text, negative, guidance, added | further, added_negative | further)

    def _encoded(self, tokens: Sequence[torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Embeddings (B, L, D), and what else the family's models take of a text."""
        device = next(self.encoders[0].parameters()).device
        ids = [x.to(device) for x in tokens]
        if self.family == "sd":
            return self.encoders[0](ids[0])[0], {}
        if self.family == "flux":  # CLIP's pooled vector (B, P) beside T5's text
            pooled = self.encoders[0](ids[0]).pooler_output
            return self.encoders[1](ids[1])[0], {"pooled_projections": pooled}
        if self.family == "pixart":
            mask = (ids[0] != self.tokenizers[0].pad_token_id).long()
            return self.encoders[0](ids[0], attention_mask=mask)[0], {"encoder_attention_mask": mask}
        outputs = [encoder(x, output_hidden_states=True) for encoder, x in zip(self.encoders[:2], ids[:2], strict=True)]
        # the layer before the last of both CLIP encoders, side by side
        text = torch.cat([output.hidden_states[-2] for output in outputs], -1)
        if self.family == "sdxl":
            return text, {"text_embeds": outputs[-1][0]}
        # SD3's tokens are CLIP's, as wide as T5's by zeros, and then T5's
        t5 = text.new_zeros(len(text), self.most, self.joint) if self.joint else self.encoders[2](ids[2])[0]
        text = torch.cat([nn.functional.pad(text, (0, t5.shape[-1] - text.shape[-1])), t5], -2)
        return text, {"pooled_projections": torch.cat([output[0] for output in outputs], -1)}

    def _sizes(self, size: tuple[int, int], text: torch.Tensor) -> dict[str, torch.Tensor]:
        """The picture's size (H, W) as the family's models take it, (B, ...)."""
        h, w = size
        if self.family == "sdxl":  # the size that is wanted, where it is cropped, the size again
            return {"time_ids": text.new_tensor([[h, w, 0, 0, h, w]]).expand(len(text), -1)}
        if self.family == "pixart":
            rows = {"resolution": [[h, w]], "aspect_ratio": [[h / w]]}
            return {name: text.new_tensor(row).expand(len(text), -1) for name, row in rows.items()}
        return {}

    def _written(self, prompts: Sequence[str]) -> list[str]:
        """Prompts as the family's texts were written: PixArt's are in small letters."""
        return [prompt.lower().strip() for prompt in prompts] if self.family == "pixart" else list(prompts)


def _is_t5(encoder: Any) -> bool:
    return "t5" in str(getattr(getattr(encoder, "config", None), "model_type", ""))
