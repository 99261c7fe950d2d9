"""Write conda's recipe for an sdist, with its version and hash: `python .ci/recipe.py dist/shrinklab-1.tar.gz OUT`."""

import re
import sys
from hashlib import sha256
from pathlib import Path

RECIPE = Path(__file__).parents[1] / "recipe" / "recipe.yaml"


def main(sdist: Path, out: Path) -> None:
    """Put both into the text of recipe/recipe.yaml; the rest stays as it is."""
    named = re.fullmatch(r"shrinklab-([\w.]+)\.tar\.gz", sdist.name)
    if not named:
        sys.exit(f"{sdist.name!r} is no sdist of shrinklab: give dist/shrinklab-<version>.tar.gz")
    text = RECIPE.read_text(encoding="utf-8")
    for key, value in (("version", named[1]), ("sha256", sha256(sdist.read_bytes()).hexdigest())):
        text, found = re.subn(rf'^  {key}: "[^"]*"$', f'  {key}: "{value}"', text, flags=re.MULTILINE)
        assert found == 1, f"{RECIPE} has no line for {key}"
    out.write_text(text, encoding="utf-8")
    print(f"{out}: {named[0]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
