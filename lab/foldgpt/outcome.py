"""What a run of FoldGPT leaves behind: a smaller `transformers` model, and how its blocks were chosen."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core import pretrained, store
from ..core.modeling_folded import FoldedForCausalLM
from ..core.outcome import Outcome
from . import measures
from .folding import Fold, unrolled
from .rehearsal import write_model
from .search import FoldMove

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class FoldGPTOutcome(Outcome):
    """A folded model that generates as any other of `transformers`, and how it came about.

    ranking: blocks from the first to go. fold: what was removed and shared. moves: of a search under a budget, what
    every move costs alone. gates (steps, N): g over the training, no
    rows for a baseline's ranking. similarity (N + 1, N + 1): cosines of the original's states, Card (8).
    """

    model: Any
    ranking: tuple[int, ...]
    fold: Fold
    gates: Tensor
    similarity: Tensor
    tokenizer: Any = None
    moves: tuple[FoldMove, ...] = ()

    def found(self) -> dict[str, Any]:
        moves = {"moves": [[list(move.blocks), move.loss] for move in self.moves]} if self.moves else {}
        return {
            "ranking": list(self.ranking),
            "fold": self.fold.to_dict(),
            "gates": self.gates,
            "similarity": self.similarity,
            **moves,
        }

    def fill(self, folder: Path) -> None:
        """Write the model as `transformers` reads it, shared weights once, and the outcome beside it.

        Where layers share, `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` runs the folder's
        `modeling_folded.py`; `lab.load(folder)` and `lab.tasks.prose(folder)` need no code of the folder. ValueError
        if what was written does not give what the model does.
        """
        write_model(self.model, folder)
        if self.tokenizer is not None:
            _write_tokenizer(self.tokenizer, folder)
        super().fill(folder)

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
            moves=tuple(FoldMove(tuple(run), loss) for run, loss in stored.get("moves", ())),
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


def _write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer as `transformers` reads it, without where it was read from: that is not what it is."""
    with tempfile.TemporaryDirectory() as aside:
        tokenizer.save_pretrained(aside)
        files = {path.name: path.read_bytes() for path in Path(aside).iterdir() if path.name in TOKENIZER}
    if "tokenizer_config.json" in files:
        facts = json.loads(files["tokenizer_config.json"])
        kept = {name: value for name, value in facts.items() if name not in ("is_local", "local_files_only")}
        files["tokenizer_config.json"] = (json.dumps(kept, indent=2, sort_keys=True) + "\n").encode()
    for name, content in files.items():
        store.write(folder / name, content)
