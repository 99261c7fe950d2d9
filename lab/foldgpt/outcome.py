"""What a run of FoldGPT leaves behind: a smaller `transformers` model, and how its blocks were chosen."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ..core import modeling_folded, pretrained, store
from ..core.data.text import logits
from ..core.modeling_folded import AUTO_MAP, BASE, KIND, FoldedForCausalLM, stored_state
from ..core.outcome import Outcome
from ..core.task import evaluating
from . import measures
from .folding import Fold, alike, probe, unrolled

ASIDE = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class FoldGPTOutcome(Outcome):
    """A folded model that generates as any other of `transformers`, and how it came about.

    ranking: blocks from the first to go. fold: what was removed and shared. gates (steps, N): g over the training, no
    rows for a baseline's ranking. similarity (N + 1, N + 1): cosines of the original's states, Card (8).
    """

    model: Any
    ranking: tuple[int, ...]
    fold: Fold
    gates: Tensor
    similarity: Tensor
    tokenizer: Any = None

    def found(self) -> dict[str, Any]:
        return {
            "ranking": list(self.ranking),
            "fold": self.fold.to_dict(),
            "gates": self.gates,
            "similarity": self.similarity,
        }

    def fill(self, folder: Path) -> None:
        """Write the model as `transformers` reads it, shared weights once, and the outcome beside it.

        Where layers share, `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` runs the folder's
        `modeling_folded.py`; `lab.load(folder)` and `lab.tasks.prose(folder)` need no code of the folder. ValueError
        if what was written does not give what the model does.
        """
        store.write(folder / "model.safetensors", to_bytes(stored_state(self.model), {"format": "pt"}))
        for name, content in self._files().items():
            store.write(folder / name, content)
        _validate_same_output(self.model, FoldedForCausalLM.from_pretrained(folder))
        super().fill(folder)

    def _files(self) -> dict[str, bytes]:
        """Configuration, tokenizer and the modelling file, by name."""
        with tempfile.TemporaryDirectory() as folder:
            for part in (self.model.config, self.model.generation_config, self.tokenizer):
                if part is not None:
                    part.save_pretrained(folder)
            files = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name in ASIDE}
        if "tokenizer_config.json" in files:  # where a tokenizer was read from is not what it is
            facts = json.loads(files["tokenizer_config.json"])
            kept = {name: value for name, value in facts.items() if name not in ("is_local", "local_files_only")}
            files["tokenizer_config.json"] = _json(kept)
        config = json.loads(files["config.json"]) | {"architectures": [type(self.model).__name__]}
        if not self.fold.groups:
            return files | {"config.json": _json(config)}
        config |= {"model_type": KIND, BASE: config["model_type"], "auto_map": AUTO_MAP}
        config["architectures"] = [FoldedForCausalLM.__name__]
        source = Path(modeling_folded.__file__).read_bytes()
        return files | {"config.json": _json(config), "modeling_folded.py": source}

    @classmethod
    def restore(cls, saved: dict[str, Any], recipe: Any, base: Any = None) -> "FoldGPTOutcome":
        """The outcome that `save` stored, its model from the same folder; `base` is not needed."""
        stored, folder = saved["found"], Path(saved["folder"])
        return cls(
            recipe=recipe,
            **cls.records(saved),
            model=FoldedForCausalLM.from_pretrained(folder),
            ranking=tuple(stored["ranking"]),
            fold=Fold.from_dict(stored["fold"]),
            gates=stored["gates"],
            similarity=stored["similarity"],
            tokenizer=pretrained.tokenizer(folder) if (folder / "tokenizer.json").exists() else None,
        )

    def unroll(self) -> nn.Module:
        """A copy with weights for every layer: plain `transformers`, no code of the lab; larger, as fast."""
        return unrolled(self.model)

    def text(self, prompt: str, count: int = 30) -> str:
        """The prompt and what the folded model makes of it."""
        if self.tokenizer is None:
            raise ValueError("this task came without a tokenizer: give lab.tasks.prose(model, tokenizer=...)")
        return measures.text(self.model, self.tokenizer, prompt, count)

    def race(self, net: nn.Module, count: int = 32, repeats: int = 5) -> dict[str, list[float]]:
        """Tokens a second of the model `net` and of this one, in turns: 'full', 'folded'."""
        x = torch.ones(1, 8, dtype=torch.int64, device=next(self.model.parameters()).device)
        return measures.speeds({"full": net, "folded": self.model}, x, count, repeats)


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()


def _validate_same_output(model: nn.Module, read: nn.Module) -> None:
    """Raise unless a model that was read from a folder gives what the one that was written does."""
    x = probe(model)
    with torch.no_grad(), evaluating(model):
        if not alike(logits(read.to(x.device)(x)), logits(model(x))):
            raise ValueError(
                f"{type(model).__name__} answers otherwise after it was saved and read again, so nothing was kept: "
                "save outcome.unroll() with its save_pretrained"
            )
