"""Who may import whom: the folder is the floor, a lower floor never looks up, and methods never look sideways."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "lab"
TESTS = REPOSITORY / "tests"
ROOMS = {"core", "ui", "lens", "chain"}  # every other folder is a method
ABOVE = {"chain", "inference"}
DRAWING = {"plotly", "ipywidgets", "anywidget", "traitlets", "IPython", "matplotlib"}
NOT_A_NAME = {"util", "utils", "helper", "helpers", "common", "manager", "managers", "misc"}
BY_NAME = {"lab", "lab.core.rooms", "lab.ui", "lab.core.parallel", "lab.core.imports"}  # at first use, clusters, torch
LONGEST = 400


def modules(package: Path) -> dict[str, Path]:
    """The modules of a package by dotted name; a package is named as its folder."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, known: dict[str, Path], top_only: bool = False) -> Iterator[str]:
    """What a module imports: dotted names of the package's own modules, top names of all others."""
    tree = ast.parse(known[name].read_text(encoding="utf-8"))
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _base(name, node, known[name].name == "__init__.py")
            found = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names]
        else:
            continue
        yield from (target if target.split(".")[0] in known else target.split(".")[0] for target in found)


def _base(name: str, node: ast.ImportFrom, is_package: bool) -> str:
    """The absolute name of what stands between `from` and `import`."""
    if not node.level:
        return node.module or ""
    above = name.split(".")
    above = above[: len(above) - node.level + is_package]
    return ".".join([*above, *([node.module] if node.module else [])])


def room(name: str) -> str:
    """The folder of a module: 'core', 'ui', a method; '' for the modules above them."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] not in ("__main__", "doctor", "settings") else ""


def is_view(name: str) -> bool:
    return name.split(".")[-1] == "view" and room(name) not in ("core", "ui", "")


def may_import(name: str, target: str) -> bool:
    """Whether a module may import another module of the package."""
    here, there = room(name), room(target)
    if name == "lab":
        return True  # lazily: see test_the_package_itself_is_lazy
    if here in ABOVE and there not in {"", *ROOMS}:
        return True  # methods one after another, and the engine for all, stand on the methods
    if here != there:
        draws = is_view(name) or here == "lens"
        return not name.endswith(".equations") and (there == "core" or (there in ("ui", "lens") and draws))
    if here in ROOMS | {""}:
        return True
    rank = {"equations": 0, "recipe": 2, here: 3, "view": 3}
    mine, other = (rank.get(one.split(".")[-1], 1) for one in (name, target))
    return mine > other or mine == other == 1


def breaches(package: Path) -> list[str]:
    """Every import that goes up or sideways, draws where nothing is drawn, or is hidden behind a name."""
    known, found = modules(package), []
    for name in known:
        for target in imports(name, known):
            if target.split(".")[0] in known:
                if not may_import(name, target):
                    found.append(f"{name} imports {target}")
            elif target in DRAWING and room(name) != "ui" and not is_view(name):
                found.append(f"{name} draws with {target}")
            elif name.endswith(".equations") and target not in sys.stdlib_module_names | {"torch"}:
                found.append(f"{name} imports {target}: equations know torch only")
        if name not in BY_NAME and _imports_by_name(known[name]):
            found.append(f"{name} imports by name")
    return found


def _imports_by_name(path: Path) -> bool:
    source = path.read_text(encoding="utf-8")
    if "import_module" not in source and "__import__" not in source:
        return False
    names = (ast.unparse(n.func) for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call))
    return any(name.split(".")[-1] in ("import_module", "__import__") for name in names)


def cycle(package: Path) -> list[str]:
    """A ring of modules that import one another, inside functions or not; [] if there is none."""
    known = modules(package)
    own = {name: {t for t in imports(name, known) if t in known and t != name} for name in known if name != "lab"}
    try:
        TopologicalSorter(own).prepare()
    except CycleError as error:
        return error.args[1]
    return []


# -- the rules -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_imports_point_down():
    assert breaches(PACKAGE) == []


@pytest.mark.slow
def test_no_import_cycles():
    assert cycle(PACKAGE) == []


def test_every_method_has_the_same_rooms():
    for folder in (path.parent for path in PACKAGE.glob("*/recipe.py")):
        assert {path.stem for path in folder.glob("*.py")} >= {"__init__", "equations", "recipe", "view"}, folder.name


def test_the_package_itself_is_lazy():
    known = modules(PACKAGE)
    assert set(imports("lab", known, top_only=True)) <= sys.stdlib_module_names
    heavy = "torch numpy pandas plotly anywidget ipywidgets sklearn skimage joblib"
    code = f"import lab, sys; dir(lab); sys.exit(str(set('{heavy}'.split()) & set(sys.modules) or ''))"
    process = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert process.stderr.strip() == ""


def faults(source: str) -> list[str]:
    """What a file lacks that is to be read."""
    lines = len(source.splitlines())
    long = [] if lines < LONGEST else [f"{lines} lines: fewer than {LONGEST}"]
    return long if ast.get_docstring(ast.parse(source)) else [*long, "does not say what it is"]


def test_a_file_says_what_it_is_and_can_be_scrolled():
    paths = modules(PACKAGE)
    assert [name for name, path in paths.items() if path.stem in NOT_A_NAME] == []
    found = {name: faults(path.read_text(encoding="utf-8")) for name, path in paths.items()}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def test_a_file_that_is_long_or_says_nothing_is_noticed():
    assert faults("x = 1\n" * LONGEST) == ["400 lines: fewer than 400", "does not say what it is"]
    assert faults('"""Something."""\n') == []


def test_every_source_has_its_tests():
    """lab/<path>/<name>.py is tested in tests/<path>/test_<name>.py, or where tests/where.txt says."""
    sources = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    mirrored = {path for path in sources if (TESTS / path.parent / f"test_{path.name}").is_file()}
    lines = [line.split() for line in (TESTS / "where.txt").read_text().splitlines() if not line.startswith("#")]
    assert sorted(Path(source) for source, _ in lines) == sorted(sources - mirrored)
    assert [test for _, test in lines if not (TESTS / test).is_file()] == []


# -- the rules catch what they are there for ---------------------------------------------------------------------------

HOUSE = {
    "__init__": "from importlib import import_module\ndef view(): from .ui import view",
    "__main__": "import lab\nfrom .core import store",
    "core/__init__": "",
    "core/store": "import json, torch",
    "core/task": "from . import store\nfrom .store import save",
    "ui/__init__": "from .explorer import Explorer",
    "ui/explorer": "import plotly\nfrom ..core.store import save",
    "fold/__init__": "from .recipe import Fold",
    "fold/equations": "import math\nimport torch\nfrom torch.nn import functional",
    "fold/layers": "from . import equations as eq\nfrom .equations import f",
    "fold/recipe": "from ..core import task\nfrom . import equations, layers",
    "fold/view": "import plotly\nfrom ..ui import Explorer\nfrom ..lens import atlas\nfrom .recipe import Fold",
    "lens/__init__": "from .atlas import atlas",
    "lens/atlas": "from ..core import task\nfrom ..ui import Explorer",
    "gal/__init__": "from .recipe import GAL",
    "gal/equations": "import torch",
    "gal/recipe": "from lab.core import task",
    "gal/view": "from .recipe import GAL",
    "chain/__init__": "from .stages import Chain",
    "chain/stages": "from ..core import task\nfrom ..gal import GAL",
    "chain/view": "from ..ui import Explorer\nfrom .stages import Chain",
}


def house(folder: Path, **added: str) -> Path:
    """A small package in order, with lines added to some of its files."""
    for name, source in {**HOUSE, **{k: f"{HOUSE.get(k, '')}\n{line}" for k, line in added.items()}}.items():
        path = folder / "lab" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return folder / "lab"


def test_a_house_in_order_passes(tmp_path):
    assert breaches(house(tmp_path)) == [] and cycle(tmp_path / "lab") == []


@pytest.mark.parametrize(
    ("file", "line", "breach"),
    [
        ("core/store", "from ..gal import GAL", "lab.core.store imports lab.gal"),
        ("core/store", "import lab.gal.recipe", "lab.core.store imports lab.gal.recipe"),
        ("core/store", "def f():\n    from ..ui import Explorer", "lab.core.store imports lab.ui"),
        ("core/store", "import lab", "lab.core.store imports lab"),
        ("core/store", "from .. import __version__", "lab.core.store imports lab"),
        ("core/store", "import plotly.express", "lab.core.store draws with plotly"),
        ("core/store", "import importlib\nimportlib.import_module('lab.gal')", "lab.core.store imports by name"),
        ("core/store", "__import__('lab.gal')", "lab.core.store imports by name"),
        ("core/__init__", "from ..ui.explorer import Explorer", "lab.core imports lab.ui.explorer"),
        ("core/nets/chain", "from ...gal.recipe import GAL", "lab.core.nets.chain imports lab.gal.recipe"),
        ("ui/explorer", "from ..gal import recipe", "lab.ui.explorer imports lab.gal.recipe"),
        ("ui/__init__", "if True:\n    from lab.fold.view import f", "lab.ui imports lab.fold.view"),
        ("__main__", "from .gal import GAL", "lab.__main__ imports lab.gal"),
        ("fold/recipe", "from ..gal import equations", "lab.fold.recipe imports lab.gal.equations"),
        ("fold/view", "from ..gal.recipe import GAL", "lab.fold.view imports lab.gal.recipe"),
        ("fold/recipe", "from ..ui import Explorer", "lab.fold.recipe imports lab.ui"),
        ("fold/recipe", "from . import view", "lab.fold.recipe imports lab.fold.view"),
        ("fold/recipe", "from lab.fold import Fold", "lab.fold.recipe imports lab.fold"),
        (
            "fold/recipe",
            "try:\n    import ipywidgets\nexcept ImportError: pass",
            "lab.fold.recipe draws with ipywidgets",
        ),
        ("fold/layers", "from .recipe import Fold", "lab.fold.layers imports lab.fold.recipe"),
        ("fold/layers", "import anywidget", "lab.fold.layers draws with anywidget"),
        ("fold/structures", "from .view import f", "lab.fold.structures imports lab.fold.view"),
        ("fold/equations", "from ..core import store", "lab.fold.equations imports lab.core.store"),
        ("fold/equations", "from .layers import f", "lab.fold.equations imports lab.fold.layers"),
        ("fold/equations", "import numpy as np", "lab.fold.equations imports numpy: equations know torch only"),
        ("fold/__init__", "from . import view", "lab.fold imports lab.fold.view"),
        ("fold/recipe", "from ..lens import atlas", "lab.fold.recipe imports lab.lens.atlas"),
        ("lens/atlas", "from ..gal.recipe import GAL", "lab.lens.atlas imports lab.gal.recipe"),
        ("lens/atlas", "import plotly", "lab.lens.atlas draws with plotly"),
        ("core/task", "from ..lens import atlas", "lab.core.task imports lab.lens.atlas"),
        ("ui/explorer", "from ..lens import atlas", "lab.ui.explorer imports lab.lens.atlas"),
        ("chain/stages", "from ..ui import Explorer", "lab.chain.stages imports lab.ui"),
        ("gal/recipe", "from ..chain import Chain", "lab.gal.recipe imports lab.chain"),
        ("core/task", "from ..chain import Chain", "lab.core.task imports lab.chain"),
    ],
)
def test_a_planted_breach_is_found(tmp_path, file, line, breach):
    assert breach in breaches(house(tmp_path, **{file: line}))


@pytest.mark.parametrize(
    ("file", "line"),
    [("core/store", "def f():\n    from . import task"), ("ui/explorer", "from . import Explorer")],
)
def test_a_planted_cycle_is_found(tmp_path, file, line):
    assert f"lab.{file.replace('/', '.')}" in cycle(house(tmp_path, **{file: line}))
