"""lib.report: one file, code folded, no request, untrusted text as text; and the one-line answer."""

import math
import re

import nbformat
import pandas as pd
import papermill
import pytest
from build_study import ANIMALS, build_study

from lib import paths, report
from lib.errors import DamagedFile, MissingInput

SCRIPT = "<script>alert('owl')</script>"


def write_notebook(path, *outputs):
    """An executed notebook with a heading, a formula, and one cell with the given outputs."""
    cells = [
        nbformat.v4.new_markdown_cell("# A <study> & its answer\n\n$x^2$ and ![x](picture.png)"),
        nbformat.v4.new_code_cell("show('this code')", execution_count=1, outputs=list(outputs)),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def display(**data):
    return nbformat.v4.new_output("display_data", {k.replace("__", "/"): v for k, v in data.items()})


def export(tmp_path, *outputs):
    out = tmp_path / "deep" / "report.html"
    report.export_report(write_notebook(tmp_path / "run.ipynb", *outputs), out)
    return out.read_text()


def find_requests(page):
    """Whatever in a page would make a browser fetch something."""
    links = re.findall(r"""(?:src|href|action|poster|srcset|data)\s*=\s*["']?([^"'\s>]+)""", page)
    links += re.findall(r"""url\(\s*["']?([^"')]+)|@import\s+(\S+)""", page)
    return [link for link in links if not str(link).startswith(("data:", "#"))]


def test_a_script_in_an_answer_is_shown_as_text(tmp_path):
    answers = pd.DataFrame({"text": [SCRIPT, "<img src=x onerror=alert(1)>"]})
    page = export(
        tmp_path,
        display(text__html=answers.to_html(), text__plain=repr(answers)),
        nbformat.v4.new_output("stream", name="stdout", text=SCRIPT),
    )
    assert "<script" not in page
    assert "<img src=x" not in page
    assert page.count("&lt;script&gt;alert") == 2


def test_html_that_nobody_escaped_is_made_harmless(tmp_path):
    evil = f"<b>bold</b>{SCRIPT}<img src='https://example.org/x.png' onerror='x()'>"
    evil += "<a href='javascript:x()'>y</a>"
    page = export(tmp_path, display(text__html=evil, text__plain=""))
    assert "<b>bold</b>" in page
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "<img src='https" not in page
    assert 'href="javascript' not in page


def test_scripts_and_widgets_of_outputs_are_dropped(tmp_path):
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "a progress bar"}
    page = export(
        tmp_path,
        nbformat.v4.new_output("display_data", widget),
        nbformat.v4.new_output("display_data", {"application/javascript": "alert(1)", "text/plain": "quiet"}),
    )
    assert "<script" not in page
    assert "alert(1)" not in page
    assert "a progress bar" in page


def test_the_page_forbids_scripts_and_requests_by_itself(tmp_path):
    page = export(tmp_path)
    assert "default-src 'none'" in re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    assert page.count("<!DOCTYPE html>") == 1


def test_code_is_folded_away_and_can_be_unfolded(tmp_path):
    page = export(tmp_path)
    assert "<details" in page[: page.index("this code")]
    assert "<details open" not in page


def test_the_title_is_the_first_heading_escaped(tmp_path):
    assert "<title>A &lt;study&gt; &amp; its answer</title>" in export(tmp_path)


def test_a_missing_or_broken_notebook_is_named(tmp_path):
    with pytest.raises(MissingInput, match=r"absent\.ipynb"):
        report.export_report(tmp_path / "absent.ipynb", tmp_path / "x.html")
    (tmp_path / "broken.ipynb").write_text("{ half a")
    with pytest.raises(DamagedFile, match=r"broken\.ipynb"):
        report.export_report(tmp_path / "broken.ipynb", tmp_path / "x.html")


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """04_analysis run by papermill on a study of real files; the kernel sees the same root."""
    folder = tmp_path_factory.mktemp("executed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUBLIMINAL_ROOT", str(folder))
        patch.setenv("PYTHONPATH", str(paths.CODE))  # the code under test, installed or not
        build_study(labels=("64k", "64k-1"), answers=(SCRIPT,))
        asked = {"study": "toy", "sizes": "64k,64k-1", "animals": ",".join(ANIMALS), "permutations": 500}
        papermill.execute_notebook(
            paths.notebook("04_analysis"), folder / "run.ipynb", asked, progress_bar=False, cwd=folder
        )
        report.export_report(folder / "run.ipynb", folder / "report.html")
        written = {path.name for path in (*paths.tables("toy").iterdir(), *paths.figures("toy").iterdir())}
    return folder, written


def test_the_analysis_becomes_one_page_without_a_request(executed):
    page = (executed[0] / "report.html").read_text()
    assert find_requests(page) == []
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page
    assert page.count("data:image/png;base64,") == 10
    assert "lambda by size (nats, epoch 2): 64k +" in page


def test_the_analysis_writes_its_tables_and_its_figures_with_their_csv(executed):
    assert {"transfer.csv", "bases.csv", "cells.csv", "epochs.csv", "lineage.json"} <= executed[1]
    figures = {"scaling", "matrix", "bars_64k", "stack_64k"}
    assert {f"{name}.{kind}" for name in figures for kind in ("png", "csv")} <= executed[1]


# --- the answer -------------------------------------------------------------------------------


def make_transfer(*rows):
    columns = ["size", "params", "lambda", "p", "measure"]
    return pd.DataFrame(rows, columns=columns).assign(epoch=3)


def test_the_answer_has_lambda_and_p_of_every_size_in_order():
    table = make_transfer(
        ("166k", 166_000, 0.0261, 0.00061, "logprob"),
        ("64k", 64_752, -0.5, 0.00002, "logprob"),
        ("64k", 64_752, 12.0, 0.5, "rate"),
    )
    assert report.answer_line(table) == (
        "lambda by size (nats, epoch 3): 64k -0.500 (p < .0001); 166k +0.0261 (p = 0.00061)"
    )
    assert (
        report.answer_line(table, "rate")
        == "lambda by size (percentage points, epoch 3): 64k +12.0 (p = 0.5)"
    )


def test_a_size_without_a_number_is_said_to_be_unknown():
    table = make_transfer(("64k", 64_752, math.nan, math.nan, "logprob"))
    assert "64k unknown (no p, see its note)" in report.answer_line(table)
