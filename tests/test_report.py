"""lib.report: one file, code folded, untrusted text as text; and the answer in words. test_page opens it."""

import base64
import hashlib
import math
import re

import nbformat
import pandas as pd
import pytest

from lib import report
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


def find_scripts(page):
    """Scripts of a page: its own is one."""
    return len(re.findall(r"<script", page.partition("<body>")[2]))


def test_a_script_in_an_answer_is_shown_as_text(tmp_path):
    answers = pd.DataFrame({"text": [SCRIPT, "<img src=x onerror=alert(1)>"]})
    page = export(
        tmp_path,
        display(text__html=answers.to_html(), text__plain=repr(answers)),
        nbformat.v4.new_output("stream", name="stdout", text=SCRIPT),
    )
    assert find_scripts(page) == 1
    assert "<img src=x" not in page
    assert page.count("&lt;script&gt;alert") == 2


def test_html_that_nobody_escaped_is_made_harmless(tmp_path):
    evil = f"<b>bold</b>{SCRIPT}<img src='https://example.org/x.png' onerror='x()'>"
    evil += "<a href='javascript:x()'>y</a>"
    page = export(tmp_path, display(text__html=evil, text__plain=""))
    assert "<b>bold</b>" in page
    assert "&lt;script&gt;" in page
    assert find_scripts(page) == 1
    assert "<img src='https" not in page
    assert 'href="javascript' not in page


def test_scripts_and_widgets_of_outputs_are_dropped(tmp_path):
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "a progress bar"}
    page = export(
        tmp_path,
        nbformat.v4.new_output("display_data", widget),
        nbformat.v4.new_output("display_data", {"application/javascript": "alert(1)", "text/plain": "quiet"}),
    )
    assert find_scripts(page) == 1
    assert "alert(1)" not in page
    assert "a progress bar" in page


def test_the_page_forbids_scripts_and_requests_by_itself(tmp_path):
    page = export(tmp_path)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    for name, tag in (("script", "script"), ("style", "style")):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
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
