"""How quick the explorer is in a browser: `python bench_explore_page.py` writes benchmarks/explore_page.csv.

The made-up study of bench_explore.py (480 evaluations of ten epochs with 1,000 answers) is served to
a headless Chromium. A change is timed in the page, from the event to the painted frame behind the reply;
the first view from the start of the server's process. Waits that typing and sliding have on purpose (220
and 60 ms) are part of it.
"""

import argparse
import csv
import datetime
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from bench_explore import describe_device
from lib import config, files, paths, provenance
from tests.browser import ARGUMENTS, find_chromium
from tests.build_grid import STUDY, build_grid

FIELDS = ("run", "device", "answers", "change", "n", "median_ms", "worst_ms", "load", "code")
READY = "main.sx[data-waiting='0'] .sx-bars"
# Acts on one control and waits until the page has asked, been answered and painted.
STEP = """([kind, selector, value]) => new Promise((done) => {
  const root = document.querySelector('main.sx'), begun = performance.now();
  let asked = false;
  const painted = () => requestAnimationFrame(() => setTimeout(() => done(performance.now() - begun)));
  const check = () => {
    if (root.dataset.waiting !== '0') asked = true;
    else if (asked) { watch.disconnect(); painted(); }
  };
  const watch = new MutationObserver(check);
  watch.observe(root, {attributes: true, attributeFilter: ['data-waiting']});
  const control = document.querySelector(selector);
  if (kind === 'click') control.click();
  else { control.value = value; control.dispatchEvent(new Event(kind, {bubbles: true})); }
  check();
})"""
ANIMAL, BASE, EPOCH = "[data-key=bar-animal]", "[data-key=bar-label]", "input[type=range]"
SCOPE, SEARCH = "[data-key=filter-scope]", "input[type=search]"


def list_changes(page: Page) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """What a reader does, view by view; the choices of a later view are read once it is there."""
    animals = [("change", ANIMAL, name) for name in config.GRID_ANIMALS[:10]]
    yield "student: another animal", animals
    yield "student: another base", [("change", BASE, name) for name in list_choices(page, BASE)]
    yield "student: another epoch (60 ms of rest)", [("input", EPOCH, str(at)) for at in (0, 3, 5, 8, 2, 9)]
    yield "answers: opened", [open_tab("answers")]
    yield "answers: another animal", animals
    yield (
        "answers: what they say",
        [("change", "[data-key=filter-said]", name) for name in ("other", "", "wolf", "")],
    )
    yield (
        "answers: search in an epoch (220 ms of rest)",
        [("input", SEARCH, text) for text in ("wolf", "because", "the", "")],
    )
    yield "answers: scope", [("change", SCOPE, name) for name in ("student", "study", "epoch", "study")]
    yield (
        "answers: search in the study (220 ms of rest)",
        [("input", SEARCH, text) for text in ("forest", "because it is", "zebra", "w", "")],
    )
    yield "compare: opened", [open_tab("compare")]
    yield (
        "compare: another student",
        [("change", "[data-key=right-animal]", name) for _, _, name in animals],
    )
    yield "follow: opened", [open_tab("follow")]
    yield "follow: another animal", animals
    yield "map: opened", [open_tab("map")]
    size = "[data-key=map-size]"
    yield "map: another size", [("change", size, name) for name in list_choices(page, size)]
    yield "map: another epoch", [("change", "[data-key=map-epoch]", at) for at in ("1", "5", "3")]


def open_tab(name: str) -> tuple[str, str, str]:
    return "click", f"[data-tab={name}]", ""


def list_choices(page: Page, selector: str) -> list[str]:
    """The values of a select, that which is chosen last, so that each is a change."""
    chosen_last = "all => [...all].sort((a, b) => a.selected - b.selected).map((each) => each.value)"
    return page.eval_on_selector_all(f"{selector} option", chosen_last)


def measure(page: Page, address: str, begun: float) -> Iterator[tuple[str, list[float]]]:
    """The first view, then every change once all files have been read."""
    page.goto(address)
    page.wait_for_selector(READY)
    yield "first view, from the start of the server", [1000 * (time.perf_counter() - begun)]
    page.wait_for_selector(".sx-progress", state="hidden", timeout=900_000)
    yield "all files read in the background", [1000 * (time.perf_counter() - begun)]
    for name, acts in list_changes(page):
        yield name, [page.evaluate(STEP, act) for act in acts]
    page.goto("about:blank")
    begun = time.perf_counter()
    page.goto(address)
    page.wait_for_selector(READY)
    yield "the page loaded again", [1000 * (time.perf_counter() - begun)]


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--evaluations", type=int, default=480)
    parser.add_argument("--out", type=Path, default=paths.benchmarks() / "explore_page.csv")
    asked = parser.parse_args()
    run = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    shared = {"run": run, "device": describe_device(), "answers": asked.evaluations * 10_000}
    shared["code"] = str(provenance.code_version()["source"])[:12]
    rows = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        build_grid(Path(folder), asked.evaluations)
        browser = driver.chromium.launch(executable_path=find_chromium(), args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        begun = time.perf_counter()
        server = subprocess.Popen(
            [sys.executable, paths.CODE / "explore.py", STUDY, "--no-browser", "--port", "8840"],
            env=os.environ | {"SUBLIMINAL_ROOT": folder},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            address = re.search(r"http://[\w.:]+/", server.stdout.readline()).group()
            for change, times in measure(page, address, begun):
                load = f"{os.getloadavg()[0]:.1f}"
                numbers = {"median_ms": f"{statistics.median(times):.0f}", "worst_ms": f"{max(times):.0f}"}
                rows.append(shared | {"change": change, "n": len(times), "load": load} | numbers)
                print(
                    f"{change}: median {numbers['median_ms']} ms, worst {numbers['worst_ms']} ms", flush=True
                )
        finally:
            server.terminate()
            server.wait()
            browser.close()
    with tempfile.TemporaryFile("w+", newline="", encoding="utf-8") as table:
        writer = csv.DictWriter(table, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        table.seek(0)
        files.write_text(asked.out.resolve(), table.read())
    print(f"written to {asked.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
