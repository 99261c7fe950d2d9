"""What a reader does in JupyterLab: run all cells, move a slider, look."""

import json
import statistics
import time

RATE = ".lab-explorer input[name=rate]"
ALL_RAN = """
() => {
  const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")].map((p) => p.textContent);
  return prompts.some((p) => /\\d/.test(p)) && !prompts.some((p) => p.includes("*"));
}
"""
# Texts of pictures that their frames cut off, and that overlap.
CLIPPED = """
() => [...document.querySelectorAll(".picture svg")].flatMap((svg) => {
  const { width, height } = svg.viewBox.baseVal;
  return [...svg.querySelectorAll("text")].filter((text) => {
    const box = text.getBBox();
    return box.x < -0.5 || box.y < -0.5 || box.x + box.width > width + 0.5 || box.y + box.height > height + 0.5;
  }).map((text) => text.textContent);
})
"""
OVERLAPPING = """
() => [...document.querySelectorAll(".picture svg")].flatMap((svg) => {
  const boxes = [...svg.querySelectorAll("text")].map((text) => [text.getBBox(), text.textContent]);
  return boxes.flatMap(([a, name], i) => boxes.slice(i + 1).filter(([b]) =>
    a.x < b.x + b.width - 1 && b.x < a.x + a.width - 1 && a.y < b.y + b.height - 3 && b.y < a.y + a.height - 3
  ).map(([, other]) => `${name} / ${other}`));
})
"""
# Milliseconds from a key in the page to the changed picture, as the page itself sees it.
STEP = """
async (slider) => {
  const picture = slider.closest(".lab-explorer").querySelector(".picture");
  const old = picture.innerHTML;
  const start = performance.now();
  slider.value = Number(slider.value) + (Number(slider.value) < Number(slider.max) ? 1 : -1);
  slider.dispatchEvent(new Event("input", { bubbles: true }));
  while (picture.innerHTML === old && performance.now() - start < 5000) {
    await new Promise((next) => setTimeout(next, 1));
  }
  return performance.now() - start;
}
"""


def wait_for_notebook(page) -> None:
    """Wait for the cells and the kernel."""
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=60_000)
    page.wait_for_selector("#jp-main-statusbar >> text=/\\| Idle/", timeout=60_000)  # before, `Run` asks for a kernel


def theme(page, name: str) -> None:
    """Choose JupyterLab's theme from the menu and wait for it."""
    page.click(".lm-MenuBar-itemLabel:text-is('Settings')")
    page.click(".lm-Menu-itemLabel:text-is('Theme')")
    page.click(f".lm-Menu-itemLabel:text-is('{name}')")
    page.wait_for_selector(f"body[data-jp-theme-name='{name}']", state="attached")
    page.wait_for_timeout(500)  # its style sheet arrives a moment later


def run_all(page, timeout: float = 60) -> None:
    """Run all cells from the menu and wait for the last of them."""
    page.click(".lm-MenuBar-itemLabel:text-is('Run')")
    page.click(".lm-Menu-itemLabel:text-is('Run All Cells')")
    page.wait_for_function(ALL_RAN, timeout=timeout * 1000)
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=timeout * 1000)


def save(page) -> None:
    """Save the notebook and wait until it is stored."""
    page.click(".lm-MenuBar-itemLabel:text-is('File')")
    with page.expect_response(lambda answer: answer.request.method == "PUT" and "/api/contents/" in answer.url):
        page.click(".lm-Menu-itemLabel:text-is('Save Notebook')")


def picture(page) -> str:
    """The SVG that the first explorer with a rate shows."""
    return page.locator(RATE).first.evaluate("e => e.closest('.lab-explorer').querySelector('.picture').innerHTML")


def changed(page, old: str) -> str:
    """The picture once it is another one than `old`; fails after five seconds."""
    end = time.monotonic() + 5
    while (now := picture(page)) == old:
        assert time.monotonic() < end, "the picture did not change"
        page.wait_for_timeout(10)
    return now


def drag(page, share: float) -> None:
    """Drag the knob of the rate slider with the mouse from where it is to `share` of its way."""
    slider = page.locator(RATE).first
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    now = slider.evaluate("e => Number(e.value) / Number(e.max)")
    knob = 8  # px from the end of the track to the middle of the knob at rest
    there = [box["x"] + knob + part * (box["width"] - 2 * knob) for part in (now, share)]
    middle = box["y"] + box["height"] / 2
    page.mouse.move(there[0], middle)
    page.mouse.down()
    page.mouse.move(there[1], middle, steps=8)
    page.mouse.up()


def latencies(page, steps: int = 30) -> dict[str, float]:
    """Median and 95th percentile of the milliseconds from a slider step to its new picture."""
    slider = page.locator(RATE).first
    times = [slider.evaluate(STEP) for _ in range(steps)]
    return {"p50": statistics.median(times), "p95": statistics.quantiles(times, n=20)[-1]}


def target(page, **values):
    """The part of a picture that sets these controls when it is clicked."""
    return page.locator(f"[data-set='{json.dumps(values)}']").first


def move(slider, value: int) -> None:
    """Put a slider at this step, as a reader's drag does."""
    slider.evaluate("(e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})); }", str(value))
