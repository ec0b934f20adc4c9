"""lib.page: the report in a real browser, from disk with the network cut; foreign text stays text."""

import base64
import re
import zlib

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
from build_study import ANIMALS, build_study
from waiting import expect

from lib import charts, page, paths, plots, report

pytest_plugins = ["browser"]

HIT = "window.__hit=1"
SCRIPT = f"<script>{HIT}</script>"
HOSTILE = f"{SCRIPT}<img src=x onerror={HIT}>\x1b[31mred\x1b]8;;http://evil\x07 \u202egnp.exe\u2066 \x00\x9b"
LONG = "x" * 1_000_000
TURNING = re.compile("[\u200b-\u200f\u202a-\u202e\u2066-\u2069\x00\x1b\x9b\x07]")


def show(**data):
    return nbformat.v4.new_output("display_data", {k.replace("__", "/"): v for k, v in data.items()})


def run(source, *outputs, **metadata):
    return nbformat.v4.new_code_cell(source, execution_count=1, outputs=list(outputs), metadata=metadata)


def say(text, **metadata):
    return nbformat.v4.new_markdown_cell(text, metadata=metadata)


def export(folder, *cells):
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), folder / "run.ipynb")
    return report.export_report(folder / "run.ipynb", folder / "report.html")


# --- foreign text -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("abc\u202efdp", "abc[U+202E]fdp"),
        ("a\x1b[31mb", "a[U+001B][31mb"),
        ("a\u200bb\ufeff", "a[U+200B]b[U+FEFF]"),
        ("\ud800", "[U+D800]"),
        ("one\r\ntwo\tthree", "one\ntwo\tthree"),
        ("hidden\rshown", "hidden[U+000D]shown"),
        ("שלום, λ, 🐺", "שלום, λ, 🐺"),
    ],
)
def test_characters_that_hide_or_turn_are_shown_by_their_code(text, shown):
    assert page.reveal(text) == shown


@pytest.mark.parametrize("reference", ["&#x202e;", "&#8238;", "&#x202E", "&rlm;"])
def test_a_character_reference_hides_nothing_either(reference):
    name = "[U+200F]" if reference == "&rlm;" else "[U+202E]"
    assert page.clean_html(f"<p>{reference}x &amp; &lt;</p>", {"p"}, {}) == f"<p>{name}x &amp; &lt;</p>"


def test_a_text_of_a_megabyte_is_cut_and_says_by_how_much():
    assert page.cut(LONG).endswith(
        f"… {len(LONG) - page.LONGEST:,} more characters stand in the executed notebook"
    )
    cell = page.clean_html(f"<p>{'&lt;' * 30_000}</p>", {"p"}, {})
    assert cell.count("&lt;") == page.LONGEST
    assert "10,000 more characters" in cell


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A page of a notebook in which everything that can be foreign is."""
    dirty = pd.DataFrame({"text": [HOSTILE, LONG], "n": [1, 2]})
    raw = (
        f"<b onclick='{HIT}'>bold</b>{HOSTILE}<svg onload={HIT}></svg><iframe srcdoc='{SCRIPT}'></iframe>"
        f"<a href='javascript:{HIT}'>link</a><style>*{{display:none}}</style><base href='http://evil/'>"
        f"<form action='http://evil'></form><table class='facts'><tr><td>&#x202e;{LONG}</td></tr></table>"
        "<script type='application/json' class='data'>{}</script>"
    )
    series = {"name": HOSTILE, "colour": "#000", "points": [{"x": 1, "y": 1, "tip": HOSTILE}]}
    labels = {"x": {"label": "</script>" + SCRIPT}, "y": {"label": "y"}, "legend": True}
    chart = {"title": HOSTILE, **labels, "series": [series]}
    png = plots.encode_png(plots.draw(plots.dose_curve, pd.DataFrame()))
    figure = show(image__png=base64.b64encode(png).decode(), text__plain=HOSTILE)
    figure.data[charts.CHART] = chart
    figure.metadata = {"image/png": {"alt": f'"{HOSTILE}'}, "text/html": {"isolated": True}}
    error = nbformat.v4.new_output(
        "error", ename="Boom", evalue=HOSTILE, traceback=["\x1b[31mBoom\x1b[0m", HOSTILE]
    )
    cells = [
        say(
            f"# {HOSTILE}\n\n{HOSTILE} [link](javascript:{HIT}) ![x](http://evil/x.png)\n\n## Part {HOSTILE}"
        ),
        run(f"about = {HOSTILE!r} + '{HOSTILE}'", show(text__html=raw, text__plain=HOSTILE)),
        run("table", show(text__html=report.Table(dirty)._repr_html_(), text__plain="")),
        run("frame", show(text__html=dirty.to_html(escape=False), text__plain="")),
        run("text", nbformat.v4.new_output("stream", name="stdout", text=HOSTILE + LONG), error),
        run("figure", figure),
        run("script", show(application__javascript=HIT, text__plain=HOSTILE, text__latex=HOSTILE)),
        run("answer", show(text__html=report.Headline((HOSTILE,))._repr_html_()), tags=["answer"]),
    ]
    return export(tmp_path_factory.mktemp("hostile"), *cells)


def test_foreign_text_is_shown_and_neither_run_nor_acted_on(visit, hostile):
    seen = visit(hostile.as_uri())
    seen.says_nothing_bad()
    assert set(seen.requests) <= {hostile.as_uri()} | {
        url for url in seen.requests if url.startswith("data:")
    }
    assert seen.page.evaluate("window.__hit") is None
    words = seen.page.evaluate(
        """() => document.documentElement.outerHTML + [...document.querySelectorAll('*')]
             .flatMap(node => [...node.attributes].map(each => each.value)).join(' ')"""
    )
    assert not TURNING.search(words)
    text = seen.page.inner_text("main")
    for told in (
        "[U+202E]gnp.exe",
        "[U+001B]",
        SCRIPT,
        f"<img src=x onerror={HIT}>",
        "more characters stand in",
    ):
        assert told in text
    assert seen.overflows() == 0
    assert len(hostile.read_bytes()) < 2_000_000


def test_a_tip_of_foreign_text_is_text(visit, hostile):
    seen = visit(hostile.as_uri())
    seen.page.locator(".chart-mark[role]").focus()
    tip = seen.page.locator(".chart-tip").inner_text()
    assert SCRIPT in tip
    assert "[U+202E]" in tip
    seen.says_nothing_bad()


def test_what_slips_through_would_not_run_and_fetch_nothing(visit, hostile):
    seen = visit(hostile.as_uri())
    seen.page.evaluate(
        f"""() => {{
            document.body.insertAdjacentHTML('beforeend', '<img src="http://127.0.0.1:9/x" onerror="{HIT}">');
            const script = document.createElement('script');
            script.textContent = '{HIT}';
            document.body.append(script);
        }}"""
    )
    seen.page.wait_for_timeout(200)
    assert seen.page.evaluate("window.__hit") is None
    assert seen.blocked == []  # the policy refuses before the network is asked
    assert len([error for error in seen.errors if "Content Security Policy" in error]) >= 2


# --- tables and code --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simple(tmp_path_factory):
    """A page with one table of forty rows, one of four, and code."""
    rows = pd.DataFrame({
        "name": [f"row {at}" for at in range(40)],
        "value": [np.nan if at == 5 else (-1) ** at * at * 100.5 for at in range(40)],
        **{f"wide{at}": range(40) for at in range(20)},
    })  # fmt: skip
    small = pd.DataFrame({"size": ["64k", "166k", "2.4m"], "p": [0.00001, 0.3, np.nan]})
    cells = [
        say("# A report\n\nOpening words."),
        run("secret_code()", show(text__html=report.Table(rows)._repr_html_(), text__plain="")),
        say("## Second\n\n### Below it\n\nMore."),
        run("more_code()", show(text__html=report.Table(small)._repr_html_(), text__plain="")),
    ]
    return export(tmp_path_factory.mktemp("simple"), *cells).as_uri()


def read_column(seen, at, table=0):
    rows = seen.page.locator("main table").nth(table).locator("tbody tr:visible")
    return [row.split("\t")[at] for row in rows.all_inner_texts()]


def test_a_column_sorts_as_numbers_with_the_unknown_last(visit, simple):
    seen = visit(simple)
    head = seen.page.locator("th", has_text="value")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert read_column(seen, 1)[:2] == ["-3,920", "-3,718"]
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert read_column(seen, 1)[:2] == ["3,819", "3,618"]
    seen.page.click("text=show all 40 rows")
    assert read_column(seen, 0)[-1] == "row 5"
    assert seen.page.locator("th[aria-sort]").count() == 1


def test_a_long_table_is_folded_and_filtered_by_words(visit, simple):
    seen = visit(simple)
    assert len(read_column(seen, 0)) == 15
    field = seen.page.get_by_label("filter rows")
    assert field.count() == 1  # the small table needs none
    field.fill("39 ROW")
    assert read_column(seen, 0) == ["row 39"]
    assert seen.page.locator(".tools .count").inner_text() == "1 of 40 rows"
    field.fill("no such row")
    assert read_column(seen, 0) == []


def test_code_is_a_click_away_by_cell_and_all_at_once(visit, simple):
    seen = visit(simple)
    code = seen.page.locator("text=secret_code")
    expect(code).to_be_hidden()
    seen.page.locator("summary", has_text="code").first.press("Enter")
    expect(code).to_be_visible()
    seen.page.get_by_role("button", name="show all code").click()
    expect(seen.page.locator("text=more_code")).to_be_visible()
    seen.page.get_by_role("button", name="hide all code").click()
    expect(code).to_be_hidden()


def test_the_contents_lead_through_the_page_and_mark_where_one_is(visit, simple):
    seen = visit(simple, height=300)
    seen.page.locator(".contents a", has_text="Second").click()
    assert seen.page.url.endswith("#Second")
    here = seen.page.locator(".contents [aria-current]")
    expect(here).to_have_text(re.compile("^(Second|Below it)$"))


def test_without_scripts_everything_is_there(visit, simple):
    seen = visit(simple, java_script_enabled=False)
    assert len(read_column(seen, 0)) == 40
    expect(seen.page.locator(".contents a", has_text="Second")).to_be_visible()
    seen.page.locator("summary", has_text="code").first.click()
    expect(seen.page.locator("text=secret_code")).to_be_visible()


@pytest.mark.parametrize("dark", [False, True])
def test_colours_follow_the_system_until_one_chooses(visit, simple, dark):
    seen = visit(simple, dark=dark)
    paper = "getComputedStyle(document.body).backgroundColor"
    light, black = "rgb(255, 255, 255)", "rgb(20, 23, 28)"
    assert seen.page.evaluate(paper) == (black if dark else light)
    seen.page.get_by_role("button", name="light" if dark else "dark").click()
    assert seen.page.evaluate(paper) == (light if dark else black)
    seen.page.get_by_role("button", name="system").click()
    assert seen.page.evaluate(paper) == (black if dark else light)


def test_a_narrow_screen_scrolls_tables_and_not_the_page(visit, simple):
    seen = visit(simple, width=390, height=800)
    assert seen.overflows() == 0
    box = seen.page.locator(".scroll").first
    assert box.evaluate("node => node.scrollWidth > node.clientWidth && node.tabIndex === 0")
    box.evaluate("node => { node.scrollLeft = 400 }")
    assert box.locator("tbody td").first.bounding_box()["x"] >= 0  # the first column stays
    expect(seen.page.locator(".contents a").first).to_be_hidden()


# --- a study ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """04_analysis run by papermill on a study of real files; the kernel sees the same root."""
    folder = tmp_path_factory.mktemp("executed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUBLIMINAL_ROOT", str(folder))
        patch.setenv("PYTHONPATH", str(paths.CODE))  # the code under test, installed or not
        patch.setenv("OMP_NUM_THREADS", "1")
        build_study(labels=("64k", "64k-1", "166k"), answers=(SCRIPT,))
        asked = {"study": "toy", "sizes": "64k,64k-1,166k", "animals": ",".join(ANIMALS), "permutations": 500}
        asked["about"] = HOSTILE.replace("\x00", "")
        papermill.execute_notebook(
            paths.notebook("04_analysis"), folder / "run.ipynb", asked, progress_bar=False, cwd=folder
        )
        report.export_report(folder / "run.ipynb", folder / "report.html")
        written = {
            path.name
            for where in (paths.tables, paths.figures, paths.executed)
            for path in where("toy").iterdir()
        }
    return folder, written


@pytest.fixture
def study(visit, executed):
    return lambda **options: visit((executed[0] / "report.html").as_uri(), **options)


def test_the_analysis_writes_tables_figures_with_their_csv_and_a_page_for_slides(executed):
    assert {"transfer.csv", "bases.csv", "cells.csv", "epochs.csv", "lineage.json"} <= executed[1]
    figures = {"scaling", "matrix", "bars_64k", "stack_64k"}
    assert {f"{name}.{kind}" for name in figures for kind in ("png", "csv")} <= executed[1]
    assert {"summary.png", "summary.pdf"} <= executed[1]


def test_the_report_asks_for_nothing_and_complains_of_nothing(study, executed):
    seen = study()
    seen.page.wait_for_timeout(300)
    seen.says_nothing_bad()
    assert [url for url in seen.requests if not url.startswith("data:")] == [
        (executed[0] / "report.html").as_uri()
    ]
    assert seen.page.evaluate("window.__hit") is None
    assert (executed[0] / "report.html").stat().st_size < 8_000_000


def test_the_answer_and_its_curve_come_first_and_once(study, executed):
    seen = study()
    assert seen.page.locator("main h2").first.inner_text() == "The answer"
    lead = seen.page.locator(".answer .lead").inner_text()
    assert re.match(r"(Yes|No), at", lead)
    assert seen.page.inner_text("main").count(lead) == 1
    assert seen.page.locator(".answer figure").count() == 1
    pictures = seen.page.locator("figure img").evaluate_all("all => all.map(each => each.src)")
    assert len(set(pictures)) == len(pictures)
    assert seen.page.locator(".moved a").get_attribute("href") == "#The-answer"


def test_every_figure_is_described(study):
    alts = study().page.locator("figure img").evaluate_all("all => all.map(each => each.alt)")
    assert len(alts) == len(set(alts)) > 8
    assert all(len(alt) > 60 and re.search(r"\d", alt) for alt in alts)


def test_animals_are_toggled_in_the_curve(study):
    seen = study()
    chart = seen.page.locator(".answer .chart")
    points = chart.locator(".chart-mark[role]")
    before = points.count()
    dog = chart.get_by_role("button", name="dog", exact=True)
    dog.click()
    expect(dog).to_have_attribute("aria-pressed", "false")
    expect(points).to_have_count(before - 3)  # a student in each of three bases
    chart.get_by_role("button", name="none students of").click()
    expect(points).to_have_count(before - 3 * len(ANIMALS))
    chart.get_by_role("button", name="all students of").press("Enter")
    expect(points).to_have_count(before)


def test_a_student_says_who_it_is_under_the_pointer_and_under_the_arrow_keys(study):
    seen = study()
    chart = seen.page.locator(".answer .chart")
    mark = chart.locator(".chart-mark[aria-label^='student of cat, 166k']")
    mark.scroll_into_view_if_needed()
    spot = mark.bounding_box()
    seen.page.mouse.move(spot["x"] + spot["width"] / 2, spot["y"] + spot["height"] / 2)
    tip = chart.locator(".chart-tip")
    expect(tip).to_have_text(re.compile("^student of .*base 0, seed 0", re.DOTALL))
    seen.page.mouse.move(1, 1)
    expect(tip).to_be_hidden()
    chart.locator(".chart-mark[tabindex='0']").focus()
    told = []
    for key in ("ArrowRight", "ArrowDown", "End"):
        seen.page.keyboard.press(key)
        told.append(tip.inner_text())
    assert len(set(told)) == 3
    seen.page.keyboard.press("Escape")
    expect(tip).to_be_hidden()


def test_a_figure_opens_at_full_size_and_closes_by_keyboard(study):
    seen = study()
    button = seen.page.locator(".enlarge:visible").first
    button.focus()
    seen.page.keyboard.press("Enter")
    whole = seen.page.locator("dialog[open] img")
    expect(whole).to_have_js_property("clientWidth", 2100)
    assert whole.get_attribute("alt")
    seen.page.keyboard.press("Escape")
    expect(seen.page.locator("dialog[open]")).to_have_count(0)
    expect(button).to_be_focused()


def test_the_whole_page_can_be_reached_by_tab_and_shows_where_one_is(study):
    seen = study()
    names = []
    for _ in range(60):
        seen.page.keyboard.press("Tab")
        names.append(seen.page.evaluate("document.activeElement.textContent.trim().slice(0, 20)"))
        assert seen.page.evaluate(
            """() => { const style = getComputedStyle(document.activeElement);
                 return style.outlineStyle !== 'none' || style.strokeWidth === '3.5px' }"""
        ), names[-1]
    assert names[0] == "to the text"
    assert {"The answer", "system", "show all code", "dog"} <= set(names)


def test_commands_and_citations_can_be_copied(study):
    seen = study()
    seen.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    box = seen.page.locator(".copied", has_text="make report STUDY=toy")
    box.get_by_role("button", name="copy").click()
    expect(box.get_by_text("copied", exact=True)).to_be_visible()
    assert "make report STUDY=toy" in seen.page.evaluate("navigator.clipboard.readText()")
    assert "2507.14805" in seen.page.inner_text("main")


def test_methods_say_that_they_do_not_know_what_no_lineage_tells(study):
    text = study().page.inner_text("main")
    assert "these evaluations carry none: models, settings, versions and hours are unknown here" in text


@pytest.mark.parametrize("dark", [False, True])
def test_the_study_fits_a_phone(study, dark):
    seen = study(width=390, height=800, dark=dark)
    assert seen.overflows() == 0
    assert seen.page.locator(".answer .chart svg").first.bounding_box()["width"] > 280
    seen.says_nothing_bad()


def find_pages(pdf):
    """The drawing commands of every page, in no order, unpacked."""
    objects = dict(re.findall(rb"\n(\d+) 0 obj\n(.*?)\nendobj", pdf, re.DOTALL))
    pages = [each for each in objects.values() if re.search(rb"/Type\s*/Page\b(?!s)", each)]
    drawn = []
    for each in pages:
        body = objects[re.search(rb"/Contents (\d+) 0 R", each)[1]]
        stream = body[body.index(b"stream\n") + 7 : body.rindex(b"\nendstream")]
        drawn.append(zlib.decompress(stream) if b"FlateDecode" in body else stream)
    return drawn


def test_it_prints_in_light_colours_with_every_page_used(study, tmp_path):
    seen = study(dark=True)
    seen.page.pdf(path=tmp_path / "report.pdf", format="A4")
    pages = find_pages((tmp_path / "report.pdf").read_bytes())
    assert 5 < len(pages) < 40
    assert all(b"Tj" in drawn or b"TJ" in drawn or b" Do" in drawn for drawn in pages)
    assert sum(b"Tj" in drawn or b"TJ" in drawn for drawn in pages) > len(pages) / 2
    seen.page.emulate_media(media="print")
    assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for gone in (".bar", ".contents", ".alive", ".swap", ".more", "details.code"):
        expect(seen.page.locator(gone).first, gone).to_be_hidden()
    expect(seen.page.locator(".answer figure img")).to_be_visible()
