"""What is made when the site is built: notebooks with explorers that move, cards, the API, the board of results."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def put(path: Path, text: str) -> None:
    """Write a page if it is another than the one that is there: Sphinx reads again only what has changed."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
