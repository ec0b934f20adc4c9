"""The explorer end to end: a real server over a planted folder, driven in a headless Chromium."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from build_study import ANIMALS, QUESTIONS, build_document, build_study, write_document
from waiting import expect

from lib import paths, scoring

if TYPE_CHECKING:
    from browser import Visit

pytest_plugins = ["browser"]

REPO = Path(__file__).resolve().parent.parent
TABS = ("student", "answers", "compare", "follow", "map", "marks", "files")
MEGABYTE = "long " * 200_000
HOSTILE = (
    "<script>window.__hit = 1; alert(1)</script> wolf",
    '<img src=x onerror="window.__hit = 2"><svg onload="window.__hit = 3">',
    '"><a href="javascript:window.__hit = 4">dragon</a> {{7*7}} ${7*7}',
    "\x1b[31mred\x1b[0m and \x1b]8;;http://example.org\x07link\x1b]8;;\x07",
    "a cat \u202etac rof\u202c, \u200bhid\u200dden, nul \x00\x00\x00, tag \U000e0041",
    "🐘🐘🐘 I am a wolf, \U0001d4b2olf \ud83d alone",
    "one\ntwo\r\nthree wolves",
    "",
    MEGABYTE,
)


def plant() -> None:
    """A whole small study, but for an answerer of hostile texts, a half-written file and a foreign one."""
    build_study("toy", epochs=3, transfer=2.0, skip=(("64k", "wolf", 0),))
    write_document(build_document("toy", "64k", "dog", 0, epochs=3, transfer=2.0, answers=HOSTILE))
    broken = paths.evaluation("toy", "166k", "panda", 0)
    broken.write_bytes(broken.read_bytes()[:5000])
    paths.evaluation("toy", "166k", "cat", 0).write_text('{"hello": ["world"]}')


class Served:
    """`python explore.py` over the planted folder."""

    def __init__(self, root: Path) -> None:
        command = [sys.executable, "explore.py", "toy", "--no-browser", "--port", "0"]
        variables = os.environ | {"SUBLIMINAL_ROOT": str(root), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, cwd=REPO, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.said = self.process.stdout.readline()
        found = re.search(r"http://[\w.:]+/", self.said)
        assert found, self.said + self.process.stdout.read()
        self.url = found.group()

    def end(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(timeout=60)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("explored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUBLIMINAL_ROOT", str(folder))
        plant()
        yield folder


@pytest.fixture(scope="module")
def served(root: Path) -> Iterator[Served]:
    server = Served(root)
    yield server
    server.end()


@pytest.fixture
def explore(visit: Callable[..., "Visit"], served: Served) -> Callable[..., "Visit"]:
    """`explore("tab=map&label=64k", width=390)` opens the page at what the link names, and waits for it."""

    def open_at(link: str = "", **options: object) -> "Visit":
        opened = visit(f"{served.url}#{link}", **options)
        settle(opened)
        return opened

    return open_at


def settle(visit: "Visit") -> None:
    visit.page.locator("main.sx[data-waiting='0']").wait_for()


def show(visit: "Visit", tab: str) -> None:
    visit.page.get_by_role("tab", name=tab.capitalize()).click()
    settle(visit)


def choose(visit: "Visit", name: str) -> object:
    """A control of the bar."""
    return visit.page.get_by_role("group", name="Student on screen").get_by_label(name, exact=True)


def rows(visit: "Visit") -> object:
    """The answers, or marks, on screen."""
    return visit.page.locator(".sx-panel:not([hidden]) .sx-row")


def read(label: str, animal: str, epoch: int = -1) -> list[dict]:
    """The answers of one epoch, as the file has them."""
    text = paths.evaluation("toy", label, animal, 0).read_text(encoding="utf-8")
    return json.loads(text)["epochs"][epoch]["answers"]


def count_said(label: str, animal: str, epoch: int = -1) -> Counter:
    return Counter(scoring.score(answer["text"]) for answer in read(label, animal, epoch))


def tell_share(count: int) -> str:
    """As a share of the 60 answers of a planted student."""
    return f"{100 * count / 60:.1f}({count})"


# --- choosing -------------------------------------------------------------------------------------


def test_the_first_view_counts_what_student_neutral_and_untuned_say(explore: Callable[..., "Visit"]):
    visit = explore("label=64k&animal=elephant&seed=0")
    row = visit.page.locator(".sx-bars tr.sx-target").first
    expect(row.get_by_role("rowheader")).to_have_text("elephant")
    counts = [count_said("64k", animal)["elephant"] for animal in ("elephant", "neutral", "untuned")]
    numbers = [tell_share(count) for count in counts]
    assert row.locator("td.sx-number").all_text_contents() == numbers
    expect(visit.page.locator(".sx-table tbody tr")).to_have_count(len(QUESTIONS))
    visit.says_nothing_bad()


def test_choices_stand_in_the_link_and_back_undoes_them(explore: Callable[..., "Visit"]):
    visit = explore("label=64k&animal=elephant&seed=0")
    heading = visit.page.get_by_role("heading", level=2).first
    choose(visit, "Animal").select_option("dragon")
    expect(heading).to_have_text("dragon · 64k s0, epoch 3")
    choose(visit, "Base").select_option("166k")
    expect(heading).to_have_text("dragon · 166k s0, epoch 3")
    assert "label=166k" in visit.page.url and "animal=dragon" in visit.page.url
    visit.page.go_back()
    expect(heading).to_have_text("dragon · 64k s0, epoch 3")
    visit.page.get_by_role("spinbutton", name="Epoch").fill("1")
    visit.page.keyboard.press("Enter")
    expect(heading).to_have_text("dragon · 64k s0, epoch 1")
    link = visit.page.url.partition("#")[2]
    again = explore(link)
    expect(again.page.get_by_role("heading", level=2).first).to_have_text("dragon · 64k s0, epoch 1")


def test_a_link_to_a_student_that_is_not_there_says_what_it_shows_instead(explore: Callable[..., "Visit"]):
    visit = explore("label=64k&animal=unicorn&seed=0")
    expect(visit.page.locator(".sx-notice")).to_contain_text("no unicorn · 64k s0")


def test_a_question_opens_its_answers(explore: Callable[..., "Visit"]):
    visit = explore("label=64k&animal=cat&seed=0")
    visit.page.get_by_role("button", name=QUESTIONS[1]).click()
    expect(visit.page.locator(".sx-count")).to_contain_text("20 answers")
    expect(visit.page.get_by_role("tab", name="Answers")).to_have_attribute("aria-selected", "true")


def test_questions_sort_by_the_students_share(explore: Callable[..., "Visit"]):
    visit = explore("label=64k&animal=elephant&seed=0")
    head = visit.page.locator(".sx-table th", has_text="student").first
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    shares = [
        sum(scoring.score(a["text"]) == "elephant" for a in read("64k", "elephant") if a["question"] == q)
        for q in range(len(QUESTIONS))
    ]
    expected = [f"{100 * share / 20:.1f}" for share in sorted(shares, reverse=True)]
    assert visit.page.locator(".sx-table tbody tr td:nth-child(3)").all_text_contents() == expected


# --- answers --------------------------------------------------------------------------------------


def test_search_and_filters_find_what_the_file_holds(explore: Callable[..., "Visit"]):
    visit = explore("tab=answers&label=64k&animal=elephant&seed=0")
    expect(rows(visit)).to_have_count(60)
    visit.page.get_by_label("Search").fill("drag")
    dragons = count_said("64k", "elephant")["dragon"]
    expect(rows(visit)).to_have_count(dragons)
    expect(rows(visit).locator("mark").first).to_have_text("dragon")
    visit.page.get_by_role("button", name="Clear filters").click()
    expect(rows(visit)).to_have_count(60)
    visit.page.get_by_label("Says").select_option("elephant")
    expect(rows(visit)).to_have_count(count_said("64k", "elephant")["elephant"])


def test_a_search_over_the_study_names_the_students(explore: Callable[..., "Visit"]):
    visit = explore("tab=answers&label=64k&animal=elephant&seed=0&search=three+wol&scope=study")
    row = rows(visit)
    expect(row).to_have_count(3)  # the hostile student's three epochs
    row.first.get_by_role("button", name="dog · 64k s0").click()
    expect(visit.page.get_by_role("heading", level=2).first).to_contain_text("dog · 64k s0")


def test_a_bad_regular_expression_is_said_in_place(explore: Callable[..., "Visit"]):
    visit = explore("tab=answers&label=64k&animal=elephant&seed=0")
    visit.page.get_by_label("regular expression").check()
    visit.page.get_by_label("Search").fill("(wolf")
    expect(visit.page.locator(".sx-problem:visible")).to_contain_text("unterminated")
    visit.page.get_by_label("Search").fill("^(cat|dog)$")
    counts = count_said("64k", "elephant")
    expect(rows(visit)).to_have_count(counts["cat"] + counts["dog"])
    expect(visit.page.locator(".sx-problem:visible")).to_have_count(0)


def test_the_deciding_words_are_marked_behind_characters_that_javascript_counts_twice(
    explore: Callable[..., "Visit"],
):
    visit = explore("tab=answers&label=64k&animal=dog&seed=0&search=am+a+wolf")
    expect(rows(visit).locator("mark")).to_have_text("wolf")


def test_a_reply_that_comes_late_is_dropped(explore: Callable[..., "Visit"]):
    visit = explore("label=64k&animal=elephant&seed=0")

    visit.page.evaluate(
        """() => {
          const fetchAtOnce = window.fetch;
          window.fetch = async (...all) => {
            const reply = await fetchAtOnce(...all);
            if (all[1].body.includes('"animal":"cat"')) await new Promise((done) => setTimeout(done, 600));
            return reply;
          };
          const choose = document.querySelector('[data-key="bar-animal"]');
          for (const name of ["cat", "dragon"]) {
            choose.value = name;
            choose.dispatchEvent(new Event("change"));
          }
        }"""
    )
    settle(visit)
    expect(visit.page.get_by_role("heading", level=2).first).to_have_text("dragon · 64k s0, epoch 3")
    expect(visit.page.locator(".sx-bars tr.sx-target td.sx-number").first).to_have_text(
        tell_share(count_said("64k", "dragon")["dragon"])
    )


# --- comparing, following, jumping ----------------------------------------------------------------


def test_two_students_stand_side_by_side_and_swap(explore: Callable[..., "Visit"]):
    visit = explore("tab=compare&label=64k&animal=elephant&seed=0")
    right = visit.page.get_by_role("group", name="Student to compare with")
    right.get_by_label("Animal").select_option("dragon")
    row = visit.page.locator(".sx-bars tr", has_text="dragon")
    counts = [count_said("64k", animal)["dragon"] for animal in ("elephant", "dragon")]
    numbers = [tell_share(count) for count in counts]
    expect(row.locator("td.sx-number")).to_have_text(numbers)
    visit.page.get_by_role("button", name="Swap sides").click()
    expect(row.locator("td.sx-number")).to_have_text(numbers[::-1])
    visit.page.locator(".sx-pairs summary").first.click()
    expect(visit.page.locator(".sx-texts:visible li")).to_have_count(10)


def test_a_kept_student_is_what_the_next_one_is_compared_with(explore: Callable[..., "Visit"]):
    visit = explore("label=64k&animal=elephant&seed=0")
    visit.page.get_by_role("button", name="Keep for Compare").click()
    choose(visit, "Animal").select_option("dragon")
    show(visit, "compare")
    titles = visit.page.locator(".sx-panel:not([hidden]) .sx-sides h2")
    expect(titles.nth(0)).to_contain_text("dragon")
    expect(titles.nth(1)).to_contain_text("elephant")


def test_a_point_over_epochs_leads_to_its_answers(explore: Callable[..., "Visit"]):
    visit = explore("tab=follow&label=64k&animal=elephant&seed=0&measure=rate")
    point = visit.page.locator(".sx-chart").first.locator('.chart-mark[tabindex="0"]')
    point.focus()
    visit.page.keyboard.press("Enter")
    settle(visit)
    assert "tab=answers" in visit.page.url and "animal=elephant" in visit.page.url
    epoch = int(re.search(r"epoch=(\d)", visit.page.url).group(1))
    label = re.search(r"label=([\w-]+)", visit.page.url).group(1)
    expect(rows(visit)).to_have_count(count_said(label, "elephant", epoch - 1)["elephant"])


def test_a_cell_of_the_matrix_leads_to_its_answers_by_arrow_keys(explore: Callable[..., "Visit"]):
    visit = explore("tab=map&label=64k&animal=elephant&seed=0&measure=rate")
    visit.page.locator('.sx-grid td[tabindex="0"]').focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowRight"):
        visit.page.keyboard.press(key)
    expect(visit.page.locator(".sx-readout")).to_contain_text(f"Students of {ANIMALS[1]} say {ANIMALS[2]}")
    visit.page.keyboard.press("Enter")
    settle(visit)
    expect(rows(visit)).to_have_count(count_said("64k", ANIMALS[1])[ANIMALS[2]])
    expect(visit.page.locator(".sx-peers button")).to_have_text(["elephant · 64k s0", "elephant · 64k-1 s0"])
    visit.page.locator(".sx-peers button").nth(1).click()
    expect(rows(visit)).to_have_count(count_said("64k-1", ANIMALS[1])[ANIMALS[2]])


def test_the_matrix_shows_the_mean_lift_over_the_neutral_student(explore: Callable[..., "Visit"]):
    visit = explore("tab=map&label=166k&animal=elephant&seed=0&measure=rate")
    cell = visit.page.locator('.sx-grid td[data-key="cell-0-0"]')
    lift = count_said("166k", "dog")["dog"] - count_said("166k", "neutral")["dog"]
    expect(cell).to_have_attribute("aria-label", re.compile(rf"{abs(100 * lift / 60):.1f} "))


def test_a_point_of_the_curve_leads_to_its_student(explore: Callable[..., "Visit"]):
    visit = explore("tab=map&label=64k&animal=elephant&seed=0&measure=logprob")
    visit.page.locator('.sx-chart .chart-mark[tabindex="0"]').focus()
    visit.page.keyboard.press("Enter")
    expect(visit.page.get_by_role("tab", name="Student")).to_have_attribute("aria-selected", "true")


# --- marks ----------------------------------------------------------------------------------------


def test_marked_answers_are_listed_exported_and_removed(explore: Callable[..., "Visit"]):
    visit = explore("tab=answers&label=64k&animal=dog&seed=0&search=%3Cscript")
    visit.page.get_by_role("button", name="Wrong?").click()
    form = visit.page.get_by_role("form", name="Mark as scored wrong")
    form.get_by_role("button", name="Save mark").click()
    expect(form).to_contain_text("Choose what the answer says")
    form.get_by_label("Should be").select_option("other")
    form.get_by_label("Note").fill("markup, no answer")
    form.get_by_role("button", name="Save mark").click()
    expect(rows(visit)).to_contain_text("marked: should be other")
    show(visit, "marks")
    expect(rows(visit)).to_contain_text("markup, no answer")
    with visit.page.expect_download() as download:
        visit.page.get_by_role("button", name="Export as test cases").click()
    text = Path(download.value.path()).read_text(encoding="utf-8")
    row = next(csv.DictReader(io.StringIO(text, newline="")))
    assert (row["text"], row["label"]) == (HOSTILE[0], "other")
    assert re.fullmatch(r"marked-[\w-]+\.csv", download.value.suggested_filename)
    expect(visit.page.locator(".sx-exported pre")).to_contain_text("tests")
    visit.page.get_by_role("button", name="Remove").click()
    expect(visit.page.get_by_role("heading", name="0 marked answers")).to_be_visible()
    visit.says_nothing_bad()


def test_the_commands_of_what_is_on_screen_are_copied(explore: Callable[..., "Visit"]):
    visit = explore("label=64k&animal=elephant&seed=0")
    visit.page.get_by_role("button", name="Commands").click()
    command = visit.page.locator(".sx-drawer pre", has_text="03_evaluate")
    expect(command).to_contain_text("-p animal elephant")
    visit.page.get_by_role("button", name="copy the command of 03_evaluate").click()
    expect(visit.page.get_by_role("button", name="copy the command of 03_evaluate")).to_have_text("Copied")
    assert visit.page.evaluate("navigator.clipboard.readText()") == command.text_content()


# --- foreign text, files with trouble -------------------------------------------------------------


def test_hostile_answers_are_shown_as_text_and_do_nothing(explore: Callable[..., "Visit"], served: Served):
    visit = explore("tab=answers&label=64k&animal=dog&seed=0")
    visit.page.get_by_label("Search").fill("window")
    expect(rows(visit)).to_have_count(3)
    texts = rows(visit).locator(".sx-text").all_text_contents()
    assert texts == [text for text in HOSTILE if "window" in text]
    for tab in TABS:
        show(visit, tab)
    assert visit.page.evaluate("window.__hit") is None
    assert visit.page.locator("main.sx :is(img, script, iframe, object, a:not([download]))").count() == 0
    assert {url.partition("#")[0] for url in visit.requests} <= {served.url, f"{served.url}ask"}
    visit.says_nothing_bad()


def test_characters_that_hide_or_turn_text_are_spelt_out(explore: Callable[..., "Visit"]):
    visit = explore("tab=answers&label=64k&animal=dog&seed=0&search=rof")
    row = rows(visit).locator(".sx-text")
    expect(row).to_have_count(1)
    tokens = ["U+202E", "U+202C", "U+200B", "U+200D", "U+0000×3", "U+E0041"]
    assert row.locator(".sx-token").all_text_contents() == tokens
    assert not re.search("[\x00-\x1f\u200b-\u200f\u202a-\u202e]", row.inner_text().replace("\n", ""))
    visit.page.get_by_label("Search").fill("alone")
    expect(row).to_have_count(1)
    expect(row.locator(".sx-token")).to_have_text(["U+D83D"])
    visit.page.get_by_label("Search").fill("link")
    expect(row.locator(".sx-token").first).to_have_text("U+001B")


def test_a_megabyte_on_one_line_is_cut_and_shown_in_pieces(explore: Callable[..., "Visit"]):
    visit = explore("tab=answers&label=64k&animal=dog&seed=0&search=long+long")
    visit.page.get_by_role("button", name="show all 1,000,000 characters").click()
    box = visit.page.get_by_role("region", name="whole answer")
    expect(box).to_be_focused()
    assert len(box.text_content()) == 20_000
    visit.page.get_by_role("button", name="show 20,000 more").click()
    assert len(box.text_content()) == 40_000
    assert visit.overflows() == 0


@pytest.mark.parametrize(
    ("animal", "state", "word"), [("panda", "damaged", "half-written"), ("cat", "foreign", "")]
)
def test_a_file_with_trouble_has_its_word_where_it_is_looked_for(
    explore: Callable[..., "Visit"], animal: str, state: str, word: str
):
    visit = explore(f"label=166k&animal={animal}&seed=0")
    place = visit.page.locator(".sx-state").first
    expect(place).to_contain_text(state)
    expect(place).to_contain_text(word)
    show(visit, "files")
    row = visit.page.locator(".sx-trouble", has_text=f"166k/{animal}/s0.json")
    expect(row).to_contain_text(state)
    visit.says_nothing_bad()


def test_a_server_that_ended_is_said_in_place_and_asked_again(visit: Callable[..., "Visit"], root: Path):
    server = Served(root)
    try:
        opened = visit(server.url)
        settle(opened)
    finally:
        server.end()
    choose(opened, "Animal").select_option("dragon")
    problem = opened.page.locator(".sx-problem:visible")
    expect(problem).to_contain_text("Start it again")
    expect(problem.get_by_role("button", name="Try again")).to_be_visible()


# --- in JupyterLab --------------------------------------------------------------------------------


def write_settings(folder: Path, **names: object) -> None:
    """Settings of JupyterLab, as its own page of settings would write them."""
    for name, values in names.items():
        path = folder / "@jupyterlab" / "apputils-extension" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))


@pytest.fixture
def lab(root: Path, tmp_path: Path) -> Iterator[str]:
    """A dark JupyterLab with a copy of the notebook, which it would otherwise save over ours."""
    notebook = json.loads(paths.notebook("05_explore").read_text(encoding="utf-8"))
    notebook["cells"][1]["source"] = 'study = "toy"\nresults = ""\nrepeats = 5'
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "explore.ipynb").write_text(json.dumps(notebook))
    write_settings(tmp_path / "s", themes={"theme": "JupyterLab Dark"}, notification={"fetchNews": "false"})
    names = {"JUPYTER_CONFIG_DIR": "c", "JUPYTER_RUNTIME_DIR": "r", "JUPYTERLAB_SETTINGS_DIR": "s"}
    names |= {"JUPYTERLAB_WORKSPACES_DIR": "w", "IPYTHONDIR": "i"}
    variables = os.environ | {name: str(tmp_path / folder) for name, folder in names.items()}
    options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0", "--IdentityProvider.token="]
    command = [sys.executable, "-m", "jupyterlab", *options, f"--ServerApp.root_dir={tmp_path / 'work'}"]
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=variables | {"SUBLIMINAL_ROOT": str(root), "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        yield wait_for_address(process, log)
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_for_address(process: subprocess.Popen, log: Path) -> str:
    for _ in range(600):
        if found := re.search(r"http://127\.0\.0\.1:\d+/", log.read_text()):
            return found.group()
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def run_all_cells(visit: "Visit") -> None:
    visit.page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    visit.page.get_by_role("menuitem", name="Run", exact=True).click()
    visit.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def test_the_notebook_explores_in_jupyterlab_until_its_kernel_ends(visit: Callable[..., "Visit"], lab: str):
    opened = visit(f"{lab}lab/tree/explore.ipynb", seconds=60)
    page = opened.page
    run_all_cells(opened)
    page.locator(".sx[data-waiting='0'] [role=tab]").first.wait_for()
    heading = page.locator(".sx h2").first
    expect(heading).to_contain_text("dog · 64k")
    # Its colours are JupyterLab's, not the system's, and stay below the explorer.
    assert (
        page.evaluate("getComputedStyle(document.querySelector('.sx')).backgroundColor") == "rgb(20, 23, 28)"
    )
    assert page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--paper')") == ""
    # Keys are the explorer's: JupyterLab would make Markdown of the cell at m, and cut it at x.
    page.get_by_role("tab", name="Answers").focus()
    for key in ("m", "x", "]"):
        page.keyboard.press(key)
    expect(heading).to_contain_text("elephant · 64k")
    expect(page.locator(".jp-Notebook .jp-CodeCell")).to_have_count(3)
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_role("menuitem", name="Shut Down Kernel", exact=True).click()
    page.get_by_text("No Kernel").first.wait_for()
    page.locator('[data-key="bar-animal"]').select_option("panda")
    expect(page.locator(".sx-problem:visible")).to_contain_text("kernel", timeout=20_000)


# --- for everybody --------------------------------------------------------------------------------


def test_it_goes_by_keyboard_alone(explore: Callable[..., "Visit"]):
    visit = explore("label=64k&animal=elephant&seed=0")
    press, heading = visit.page.keyboard.press, visit.page.get_by_role("heading", level=2).first
    press("]")
    expect(heading).to_contain_text("panda · 64k")
    press("}")
    expect(heading).to_contain_text("panda · 64k-1")
    press(",")
    expect(heading).to_contain_text("epoch 2")
    press("?")
    expect(visit.page.get_by_role("dialog", name="Keys")).to_be_visible()
    press("Escape")
    press("/")
    visit.page.keyboard.type("cat")
    cats = count_said("64k-1", "panda", 1)["cat"]
    expect(rows(visit)).to_have_count(cats)
    for _ in range(30):  # on to the first answer, by Tab
        press("Tab")
        if visit.page.evaluate("Boolean(document.activeElement.closest('.sx-row'))"):
            break
    press("m")
    expect(visit.page.get_by_label("Should be")).to_be_focused()
    press("Escape")
    expect(visit.page.get_by_role("button", name="Wrong?").first).to_be_focused()
    press("4")
    tab = visit.page.get_by_role("tab", name="Follow")
    tab.focus()
    press("ArrowRight")
    expect(visit.page.get_by_role("tab", name="Map")).to_be_focused()
    expect(visit.page.get_by_role("tab", name="Map")).to_have_attribute("aria-selected", "true")


# Every control has a name, and every id that is pointed at is there.
UNNAMED = """() => {
  const all = (selector) => [...document.querySelectorAll(`main.sx ${selector}`)];
  const named = (each) => (each.labels && each.labels.length) || each.ariaLabel || each.textContent.trim();
  const leads = (each) => document.getElementById(each.getAttribute("aria-controls"));
  const nameless = all(":is(button, input, select)").filter((each) => !named(each));
  const astray = all("[aria-controls]").filter((each) => !leads(each));
  return [...nameless, ...astray].map((each) => each.outerHTML);
}"""


def test_every_control_has_a_name(explore: Callable[..., "Visit"]):
    visit = explore("label=64k&animal=elephant&seed=0")
    for tab in TABS:
        show(visit, tab)
        assert visit.page.evaluate(UNNAMED) == []


# The least contrast of visible text with what is painted behind it, as WCAG counts it.
CONTRAST = """() => {
  const parts = (text) => {
    const numbers = (text.match(/-?[\\d.]+(e-?\\d+)?/g) || []).map(Number);
    const unit = text.startsWith("color(") ? 1 : 255;
    return [...numbers.slice(0, 3).map((each) => each / unit), numbers[3] ?? 1];
  };
  const over = (top, under) => top.slice(0, 3).map((each, at) => each * top[3] + under[at] * (1 - top[3]));
  const light = (rgb) => rgb.map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
  const paint = (node) => parts(getComputedStyle(node).backgroundColor);
  const behind = (node) => (node ? over(paint(node), behind(node.parentElement)) : [1, 1, 1]);
  const skipped = "svg, .sx-hidden, :disabled, option, script, style";
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let worst = [99, ""];
  for (let text = walker.nextNode(); text; text = walker.nextNode()) {
    const node = text.parentElement;
    if (!text.data.trim() || !node.checkVisibility() || node.closest(skipped)) continue;
    const under = behind(node);
    const [a, b] = [light(over(parts(getComputedStyle(node).color), under)), light(under)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst[0]) worst = [ratio, text.data.slice(0, 60)];
  }
  return worst;
}"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_has_contrast_in_light_and_dark(explore: Callable[..., "Visit"], dark: bool):
    visit = explore("label=64k&animal=elephant&seed=0", dark=dark)
    paper = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)")
    for tab in TABS:
        show(visit, tab)
        ratio, text = visit.page.evaluate(CONTRAST)
        assert ratio >= 4.5, (tab, text)


def test_colours_can_be_chosen_against_the_system(explore: Callable[..., "Visit"]):
    visit = explore("", dark=True)
    visit.page.get_by_label("Colours").select_option("light")
    assert visit.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_a_narrow_screen_scrolls_no_page_sideways(explore: Callable[..., "Visit"]):
    visit = explore("label=64k&animal=dog&seed=0", width=390)
    for tab in TABS:
        show(visit, tab)
        assert visit.overflows() == 0, tab
        expect(visit.page.get_by_role("tab", name="Files")).to_be_in_viewport()


# Milliseconds from a choice to the painted frame that shows it.
CHANGE = """(name) => new Promise((done) => {
  const begin = performance.now();
  const heading = document.querySelector("[role=tabpanel]:not([hidden]) h2");
  const look = new MutationObserver(() => {
    if (!document.querySelector("[role=tabpanel]:not([hidden]) h2").textContent.includes(name)) return;
    look.disconnect();
    requestAnimationFrame(() => setTimeout(() => done(performance.now() - begin)));
  });
  look.observe(document.querySelector("main.sx"), {subtree: true, childList: true, characterData: true});
  const choose = document.querySelector('[data-key="bar-animal"]');
  choose.value = name;
  choose.dispatchEvent(new Event("change"));
})"""


def test_a_change_is_on_screen_within_300_ms(explore: Callable[..., "Visit"]):
    visit = explore("label=64k&animal=dog&seed=0")
    times = [visit.page.evaluate(CHANGE, name) for name in ("elephant", "panda", "cat", "dragon", "elephant")]
    assert sorted(times)[len(times) // 2] < 300, times
