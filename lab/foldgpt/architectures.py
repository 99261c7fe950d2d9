"""Which architectures of `transformers` can be folded: what came of each, built small from its configuration."""

import html
import json
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

PATH = Path(__file__).with_name("architectures.json")
OUTCOMES = ("works", "removal only", "refused", "not tried")


@dataclass(frozen=True)
class Architecture:
    """One architecture by its `model_type`: its causal language model, and what came of folding a small random one.

    outcome: 'works', 'removal only' (its blocks go, none share), 'refused' or 'not tried'. why: the reason in one line.
    """

    model_type: str
    model_class: str
    outcome: str
    why: str | None = None


@dataclass(frozen=True, repr=False)
class Architectures:
    """All causal language models of one version of `transformers`; `architectures["llama"]` is one of them."""

    transformers: str
    rows: tuple[Architecture, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Architecture]:
        return iter(self.rows)

    def __getitem__(self, model_type: str) -> Architecture:
        by_name = {row.model_type: row for row in self.rows}
        if model_type not in by_name:
            near = get_close_matches(str(model_type), list(by_name), 3, 0.5) or list(by_name)[:3]
            raise ValueError(f"{model_type!r} is not an architecture that was tried: see {', '.join(near)}")
        return by_name[model_type]

    def _title(self) -> str:
        counts = (f"{sum(row.outcome == outcome for row in self.rows)} {outcome}" for outcome in OUTCOMES)
        return f"{len(self)} causal language models of transformers {self.transformers}: {', '.join(counts)}"

    def __repr__(self) -> str:
        width = max(len(row.model_type) for row in self.rows)
        lines = (f"{row.model_type:<{width}}  {row.outcome:<12}  {row.why or ''}".rstrip() for row in self.rows)
        return "\n".join([self._title(), *lines])

    def _repr_html_(self) -> str:
        cells = ((row.model_type, row.model_class, row.outcome, row.why or "") for row in self.rows)
        lines = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in cells)
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        return f"<table><caption>{html.escape(self._title())}</caption><tbody>{body}</tbody></table>"


def architectures() -> Architectures:
    """What came of folding every causal language model of `transformers`, small, random and in single precision.

    Read from the package; `python -m tests.foldgpt.families` measures it.
    """
    content = json.loads(PATH.read_text(encoding="utf-8"))
    return Architectures(content["transformers"], tuple(Architecture(*row) for row in content["rows"]))
