"""The site, opened from the disk: whole, readable by everybody, its explorers moving, and nothing asked elsewhere."""

import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import lab_page
import pytest

ROOT = Path(__file__).parents[2]
MOVING = tuple(folder.name for folder in (ROOT / "docs" / "explorers").iterdir())
KINDS = (
    "index",
    "howto/which",
    "made/notebooks/01_gal",
    "made/cards/gal",
    "made/api/gal",
    "made/board/gal",
    "format",
    "search",
)
AXE = """
axe.run(document, {resultTypes: ["violations"], preload: false, ...%s}).then(({violations}) =>
  violations.map((one) => [one.id, one.nodes.length, one.nodes[0].html.slice(0, 200)].join(" ")))
"""


@pytest.fixture(scope="session")
def site():
    """The folder of the site, built anew; a warning of Sphinx's is an error."""
    if find_spec("sphinx") is None or find_spec("axe_playwright_python") is None:
        message = "the group 'docs' of pyproject.toml is not installed: make docs"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    built = ROOT / "docs" / "_build" / "html"
    shutil.rmtree(built.parent, ignore_errors=True)  # pages of the source keep their links while the source is the same
    sphinx = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-j",
        "2",
        "-b",
        "html",
        ROOT / "docs",
        built,
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(sphinx, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return built


class Places(HTMLParser):
    """The anchors of a page, and where its links lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids, self.links = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        facts = dict(attributes)
        self.ids.add(facts.get("id"))
        self.links |= {facts[name] for name in ("href", "src") if facts.get(name)}


def test_no_inner_link_is_broken(site):
    pages = {path: Places(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    broken = set()
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.exists() or (anchor and target in pages and anchor not in pages[target].ids):
                broken.add((str(path.relative_to(site)), link))
    assert len(pages) > 60
    assert broken == set()


def test_every_page_stands_by_itself_at_the_width_of_a_phone(site, open_page):
    page = open_page((site / "index.html").as_uri())
    page.set_viewport_size({"width": 390, "height": 844})
    wide = {}
    for path in sorted(site.rglob("*.html")):
        if "_modules" in path.parts:
            continue
        page.goto(path.as_uri())
        if over := page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"):
            wide[str(path.relative_to(site))] = over
    assert wide == {}


def moved(explorer) -> bool:
    """Whether an explorer's picture or facts follow the keyboard, over its first controls."""
    seen = {explorer.inner_html()}
    for control in explorer.locator("input[type=range], select").all()[:2]:
        control.focus()
        for key in ("ArrowLeft", "ArrowRight", "ArrowDown", "ArrowUp", "End"):
            control.press(key)
            seen.add(explorer.locator(".picture").inner_html() + explorer.locator(".facts").inner_html())
    return len(seen) > 2


def test_every_explorer_moves_by_the_keyboard_and_no_text_collides(site, open_page, artefacts):
    page = open_page((site / "index.html").as_uri())
    still, colliding = [], {}
    (artefacts / "explorers").mkdir(exist_ok=True)
    for name in ("index", *(f"made/notebooks/{path.stem}" for path in (site / "made/notebooks").glob("*.html"))):
        page.goto((site / f"{name}.html").as_uri())
        explorers = page.locator(".lab-live").all()
        assert explorers or not name.endswith(MOVING), f"{name} has no explorer that moves"
        for explorer in explorers:
            explorer.scroll_into_view_if_needed()
            explorer.locator(".picture svg").first.wait_for()
            if not moved(explorer):
                still.append((name, explorer.get_attribute("data-states")))
            explorer.screenshot(path=artefacts / "explorers" / f"{explorer.get_attribute('data-states')}.png")
        if faults := page.evaluate(lab_page.CLIPPED) + page.evaluate(lab_page.OVERLAPPING):
            colliding[name] = faults
    assert still == [] and colliding == {}


def test_figures_are_drawn(site, open_page):
    page = open_page((site / "made/notebooks/01_gal.html").as_uri(), "dark")
    figure = page.locator(".lab-figure").first
    figure.scroll_into_view_if_needed()
    figure.locator("svg .xtitle").first.wait_for()
    assert "behind GAL" in figure.inner_text()


@pytest.mark.parametrize(("scheme", "rules"), [("light", "{}"), ("dark", "{runOnly: ['color-contrast']}")])
def test_everybody_can_read_it(site, open_page, artefacts, scheme, rules):
    script = (Path(find_spec("axe_playwright_python").origin).parent / "axe.min.js").read_text(encoding="utf-8")
    page = open_page((site / "index.html").as_uri(), scheme)
    found = {}
    for kind in KINDS:
        page.goto((site / f"{kind}.html").as_uri())
        for one in page.locator(".lab-live, .lab-figure").all():
            one.scroll_into_view_if_needed()
            one.locator("svg").first.wait_for()
        if kind == "index":
            page.screenshot(path=artefacts / f"site_{scheme}.png")
        page.evaluate(script)
        if violations := page.evaluate(AXE % rules):
            found[kind] = violations
    assert found == {}
