"""The README's two screenshots: `python tests/take_screenshots.py FOLDER`, published evaluations in FOLDER.

The report must have been made (`make report STUDY=published RESULTS=FOLDER`); the explorer is served here.
"""

import subprocess
import sys
from pathlib import Path

from browser import ARGUMENTS, find_chromium
from playwright.sync_api import Page, sync_playwright

REPO = Path(__file__).resolve().parent.parent
FIGURES = REPO / "figures" / "readme"


def save(page: Page, name: str) -> None:
    """What is on the screen, as a PNG."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=FIGURES / f"{name}.png")


def main(folder: str) -> None:
    command = [
        sys.executable,
        "explore.py",
        "published",
        "--results",
        folder,
        "--no-browser",
        "--port",
        "8790",
    ]
    server = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True)
    address = next(word for word in server.stdout.readline().split() if word.startswith("http"))
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=find_chromium(), args=ARGUMENTS)
            page = browser.new_page(viewport={"width": 1280, "height": 860})
            page.goto((REPO / "executed" / "published" / "report.html").as_uri())
            page.locator(".chart svg").first.wait_for()
            save(page, "report")
            page.goto(address)
            page.get_by_role("tab", name="Map").click()
            page.locator(".chart svg").first.wait_for()
            page.get_by_text("Reading").wait_for(state="hidden", timeout=120_000)
            page.get_by_role("tab", name="Student").click()
            page.get_by_role("heading", name="What it says").wait_for()
            page.mouse.move(0, 0)
            save(page, "explorer")
            browser.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
