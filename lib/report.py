"""The report: one HTML file of an executed notebook that asks the network for nothing and runs no script.

Model answers are untrusted text: pandas escapes them, what it does not escape is sanitised here, and the
page forbids scripts and requests by itself. Must not compute anything that the notebook did not show.
"""

import html
import re
from pathlib import Path

import bleach
import nbformat
import pandas as pd
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

from lib import files
from lib.errors import DamagedFile, MissingInput

# The reader's browser enforces this: whatever a page holds, it runs nothing and fetches nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
# What a table needs and nothing else; every other tag of an output is shown as text.
TAGS = (
    "div",
    "p",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "span",
    "pre",
    "code",
    "b",
    "i",
    "em",
    "strong",
)
SPANS = ["class", "colspan", "rowspan"]
BODY = """{%- extends 'basic/index.html.j2' -%}
{% block input_group %}<details class="code"><summary>code</summary>{{ super() }}</details>{% endblock %}
{% block in_prompt %}{% endblock %}{% block output_area_prompt %}{% endblock %}
{% block empty_in_prompt %}{% endblock %}"""
CSS = """
body { max-width: 62rem; margin: 2rem auto; padding: 0 1.2rem; color: #222;
       font: 17px/1.55 system-ui, sans-serif; }
img { max-width: 100%; height: auto; }
h1, h2 { line-height: 1.2; margin-top: 2.2rem; }
details.code { margin: .6rem 0; color: #777; font-size: .8rem; }
details.code pre, .output_text pre { overflow-x: auto; font-size: .85rem; line-height: 1.4; }
.output_html { overflow-x: auto; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border: 0; white-space: nowrap;
         border-bottom: 1px solid #ddd; }
thead th { border-bottom: 2px solid #888; }
.output_stderr { color: #8a4b00; }
"""
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
{body}
</body>
</html>
"""


def export_report(executed_notebook: Path, out: Path) -> Path:
    """Write one HTML file: prose, figures and tables shown, code folded away, nothing fetched."""
    notebook = read_notebook(executed_notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.attachments = {}
        for output in cell.get("outputs", []):
            clean_output(output)
    exporter = HTMLExporter(raw_template=BODY, template_name="basic", exclude_anchor_links=True)
    body, _ = exporter.from_notebook_node(notebook)
    style = CSS + HtmlFormatter(style="friendly").get_style_defs(".highlight")
    page = PAGE.format(policy=POLICY, title=html.escape(find_title(notebook)), css=style, body=body)
    files.write_text(out, page)
    return out


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """An executed notebook, or an error that says which file is no notebook."""
    if not path.is_file():
        raise MissingInput(f"there is no executed notebook {path}: run 04_analysis first")
    try:
        return nbformat.read(path, as_version=4)
    except (ValueError, KeyError, AttributeError, nbformat.ValidationError) as error:
        raise DamagedFile(f"{path} is not a notebook ({error}): run 04_analysis again") from None


def clean_output(output: nbformat.NotebookNode) -> None:
    """Keep what a page can show without a script, tables sanitised."""
    data = output.get("data")
    if data is None:
        return
    for mime in [each for each in data if each not in ("text/html", "text/plain", "image/png")]:
        del data[mime]
    if "text/html" in data:
        # pandas sends a style block along; the page has its own, and sanitised it would show as text.
        table = re.sub(r"<style scoped>.*?</style>", "", "".join(data["text/html"]), flags=re.DOTALL)
        data["text/html"] = bleach.clean(
            table, tags=TAGS, attributes={"*": ["class"], "td": SPANS, "th": SPANS}
        )
        output.metadata = {}  # "isolated" would put it, sanitised or not, in a frame of its own


def find_title(notebook: nbformat.NotebookNode) -> str:
    """The first heading."""
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    heading = re.search(r"^# +(.+)$", prose, flags=re.MULTILINE)
    return heading.group(1) if heading else "Report"


# --- the answer -------------------------------------------------------------------------------


def answer_line(transfer_table: pd.DataFrame, measure: str = "logprob") -> str:
    """The study's answer in one line: lambda and its p for each size, in one measure."""
    rows = transfer_table[transfer_table.measure == measure].sort_values("params")
    unit = {"logprob": "nats", "rate": "percentage points"}[measure]
    parts = [
        f"{row['size']} {format_lambda(row['lambda'])} ({format_p(row.p)})" for _, row in rows.iterrows()
    ]
    epoch = f", epoch {rows.epoch.iloc[0]}" if len(rows) else ""
    return f"lambda by size ({unit}{epoch}): " + ("; ".join(parts) or "no size could be analysed")


def format_lambda(value: float) -> str:
    """Signed, with three significant figures."""
    return "unknown" if pd.isna(value) else f"{value:+#.3g}"


def format_p(p: float) -> str:
    """p as papers write it."""
    if pd.isna(p):
        return "no p, see its note"
    return "p < .0001" if p < 0.0001 else f"p = {p:.2g}"
