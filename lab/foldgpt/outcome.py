"""What a run of FoldGPT leaves behind: a smaller `transformers` model, and how its blocks were chosen."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ..core import store
from ..core.outcome import Outcome
from . import measures, modeling_folded
from .folding import Fold, unrolled
from .modeling_folded import FoldedForCausalLM, unique_state

ASIDE = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class FoldGPTOutcome(Outcome):
    """A folded model that generates as any other of `transformers`, and how it came about.

    ranking: blocks from the first to go. fold: what was removed and shared. gates (steps, N): g over the training, no
    rows for a rival's ranking. similarity (N + 1, N + 1): cosines of the original's states, Eq. (8).
    """

    model: nn.Module
    ranking: tuple[int, ...]
    fold: Fold
    gates: Tensor
    similarity: Tensor
    tokenizer: Any = None

    def found(self) -> dict[str, Any]:
        return {
            "ranking": list(self.ranking), "fold": self.fold.to_dict(), "gates": self.gates,
            "similarity": self.similarity,
        }  # fmt: skip

    def save(self, folder: str | Path) -> None:
        """Store the model as `transformers` reads it, shared weights once, and the outcome beside it.

        `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` runs the folder's `modeling_folded.py`;
        `lab.load(folder)` needs no code of the folder.
        """
        folder = Path(folder)
        store.write(folder / "model.safetensors", to_bytes(unique_state(self.model), {"format": "pt"}))
        for name, content in self._files().items():
            store.write(folder / name, content)
        super().save(folder)

    def _files(self) -> dict[str, bytes]:
        """Configuration, tokenizer and the modelling file, by name."""
        with tempfile.TemporaryDirectory() as made:
            for part in (self.model.config, self.model.generation_config, self.tokenizer):
                if part is not None:
                    part.save_pretrained(made)
            files = {path.name: path.read_bytes() for path in Path(made).iterdir() if path.name in ASIDE}
        config = json.loads(files["config.json"])
        config["auto_map"] = {"AutoModelForCausalLM": "modeling_folded.FoldedForCausalLM"}
        files["config.json"] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
        return files | {"modeling_folded.py": Path(modeling_folded.__file__).read_bytes()}

    @classmethod
    def restore(cls, saved: dict[str, Any], recipe: Any, base: Any = None) -> "FoldGPTOutcome":
        """The outcome that `save` stored, its model from the same folder; `base` is not needed."""
        found = saved["found"]
        folder = Path(saved["folder"])
        return cls(
            recipe=recipe, **cls.records(saved), model=FoldedForCausalLM.from_pretrained(folder),
            ranking=tuple(found["ranking"]), fold=Fold.from_dict(found["fold"]), gates=found["gates"],
            similarity=found["similarity"], tokenizer=_tokenizer(folder),
        )  # fmt: skip

    def unroll(self) -> nn.Module:
        """A copy with weights for every layer: plain `transformers`, no code of the lab; larger, as fast."""
        return unrolled(self.model)

    def text(self, prompt: str, count: int = 30) -> str:
        """The prompt and what the folded model makes of it."""
        if self.tokenizer is None:
            raise ValueError("this task came without a tokenizer: give lab.tasks.prose(model, tokenizer=...)")
        return measures.text(self.model, self.tokenizer, prompt, count)

    def race(self, net: nn.Module, count: int = 32, repeats: int = 5) -> dict[str, Sequence[float]]:
        """Tokens a second of the model `net` and of this one, in turns: 'full', 'folded'."""
        x = torch.ones(1, 8, dtype=torch.int64, device=next(self.model.parameters()).device)
        return measures.speeds({"full": net, "folded": self.model}, x, count, repeats)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder) if (folder / "tokenizer.json").exists() else None
