"""The page: an executed notebook as one HTML file that opens from a mail and asks the network for nothing.

Everything foreign is text here: what outputs hold is sanitised, characters that hide or turn writing are
shown by their code, and the browser runs no script but the page's own, whose hash its policy names. Without
scripts all of it can still be read. Must not compute anything that the notebook did not show.
"""

import base64
import copy
import hashlib
import html
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import bleach
import nbformat
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from pygments.formatters import HtmlFormatter

from lib.charts import CHART

WEB = Path(__file__).resolve().parent / "web"
ANSWER, HEADLINE = "answer", "headline"  # tags of cells that the page shows first
# The reader's browser enforces this: whatever a page holds, only what is hashed here runs, none is fetched.
POLICY = (
    "default-src 'none'; img-src data:; style-src 'sha256-{style}'; script-src 'sha256-{script}'; "
    "base-uri 'none'; form-action 'none'"
)
# What tables and boxes need and nothing else; every other tag of an output is shown as text.
TAGS = {
    *("div", "p", "span", "br", "pre", "code", "b", "i", "em", "strong", "ul", "ol", "li", "h3", "h4"),
    *("table", "thead", "tbody", "tr", "th", "td", "details", "summary", "dl", "dt", "dd"),
}
PROSE = TAGS | {"h1", "h2", "h5", "h6", "a", "blockquote", "hr", "sup", "sub"}
SPANS = ["class", "colspan", "rowspan"]
LONGEST = 20_000  # characters of one output, or of one cell of a table; the executed notebook has the rest
# Control and format characters (but line feed and tab), and lone halves of surrogate pairs.
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u08e2\u180e\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000110bd\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
REFERENCE = re.compile(r"&#?\w{1,32};?")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # IPython's own, in a traceback
ANCHOR = re.compile(r'<a class="anchor-link"[^>]*>[^<]*</a>')
HEADING = re.compile(r'<h([23]) id="([^"]+)">(.*?)</h\1>', re.DOTALL)
TEMPLATE = """{%- extends 'basic/index.html.j2' -%}
{% block any_cell %}{{ cell.metadata.opens }}{{ super() }}{{ cell.metadata.closes }}{% endblock %}
{% block markdowncell %}<div class="prose">{{ cell.metadata.prose }}</div>{% endblock %}
{% block input_group %}<details class="code"><summary>code</summary>{{ super() }}</details>{% endblock %}
{% block in_prompt %}{% endblock %}{% block output_area_prompt %}{% endblock %}
{% block empty_in_prompt %}{% endblock %}
{% block data_png %}<figure>
<img src="data:image/png;base64,{{ output.data['image/png'] | escape_html }}"
 alt="{{ output.metadata.alt | escape_html }}"{{ output.metadata.area }}>
{{ output.metadata.chart }}</figure>{% endblock %}"""
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#content">to the text</a>
<div class="frame">
{contents}
<main id="content">
{body}
</main>
</div>
<script>{script}</script>
</body>
</html>
"""


def build_page(notebook: nbformat.NotebookNode) -> str:
    """One HTML page of an executed notebook, which is changed on the way."""
    title, study = find_title(notebook), find_study(notebook)
    for cell in notebook.cells:
        clean_cell(cell)
    notebook.cells = arrange_cells(notebook.cells)
    if study and notebook.cells:
        name_study(notebook.cells[0], study)
    exporter = HTMLExporter(raw_template=TEMPLATE, template_name="basic", exclude_anchor_links=True)
    body, _ = exporter.from_notebook_node(notebook)
    style = read_web("theme.css", "report.css") + HtmlFormatter(style="friendly").get_style_defs(".highlight")
    script = read_web("charts.js", "report.js")
    return PAGE.format(
        policy=POLICY.format(style=hash_source(style), script=hash_source(script)),
        title=html.escape(reveal(f"{study}: {title}" if study else title)),
        style=style,
        contents=list_contents(body),
        body=body,
        script=script,
    )


def read_web(*names: str) -> str:
    """Files of lib/web/, joined."""
    return "\n".join((WEB / name).read_text(encoding="utf-8") for name in names)


def hash_source(text: str) -> str:
    """What a policy calls a style or a script by."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def find_title(notebook: nbformat.NotebookNode) -> str:
    """The first heading."""
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    heading = re.search(r"^# +(?:\d+ )?(.+)$", prose, flags=re.MULTILINE)
    return heading.group(1) if heading else "Report"


def find_study(notebook: nbformat.NotebookNode) -> str:
    """The study that papermill ran the notebook for, where it did."""
    asked = notebook.metadata.get("papermill", {}).get("parameters", {})
    return str(asked.get("study", ""))


def list_contents(body: str) -> str:
    """The table of contents: a link per heading, those of the third rank below their second."""
    found = [(int(rank), name, re.sub(r"<[^>]+>", "", text)) for rank, name, text in HEADING.findall(body)]
    links = "".join(f'<li class="rank{rank}"><a href="#{name}">{text}</a></li>' for rank, name, text in found)
    return (
        '<nav class="contents" aria-label="Contents"><details open><summary>Contents</summary>'
        f"<ol>{links}</ol></details></nav>"
        if found
        else ""
    )


# --- foreign text -----------------------------------------------------------------------------


def reveal(text: str) -> str:
    """Characters that hide themselves, turn the direction of writing or steer a terminal, by their code."""
    return HIDDEN.sub(name_character, text.replace("\r\n", "\n"))


def name_character(found: re.Match) -> str:
    """`[U+202E]`."""
    return f"[U+{ord(found[0]):04X}]"


def reveal_references(page: str) -> str:
    """The same where HTML spells such a character, as in `&#x202e;` or `&rlm;`."""

    def name(found: re.Match) -> str:
        meant = html.unescape(found[0])
        return reveal(meant) if HIDDEN.search(meant) else found[0]

    return REFERENCE.sub(name, page)


def cut(text: str) -> str:
    """At most LONGEST characters, and how many more there are."""
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}\n… {len(text) - LONGEST:,} more characters stand in the executed notebook"


def clean_html(page: str, tags: set[str], attributes: dict) -> str:
    """HTML with the given tags only; all else is shown as text, hidden characters by their code."""
    page = reveal_references(reveal(page))
    page = bleach.clean(page, tags=tags, attributes=attributes, protocols=())
    return re.sub(
        rf">([^<]{{{LONGEST + 1},}})<", lambda m: f">{html.escape(cut(html.unescape(m[1])))}<", page
    )


# --- cells ------------------------------------------------------------------------------------


def clean_cell(cell: nbformat.NotebookNode) -> None:
    """Make a cell safe to be shown, and keep only what can be shown without a script."""
    cell.source = cut(reveal(cell.source))
    cell.metadata.update({"opens": "", "closes": ""})
    if cell.cell_type == "markdown":
        cell.attachments = {}
        attributes = {"*": ["class", "id"], "td": SPANS, "th": SPANS, "a": link_inside}
        prose = ANCHOR.sub("", markdown2html(cell.source))
        cell.metadata.prose = clean_html(prose, PROSE, attributes)
    for output in cell.get("outputs", []):
        clean_output(output)


def link_inside(tag: str, name: str, value: str) -> bool:
    """A link may lead to another part of the page."""
    return name == "href" and value.startswith("#")


def clean_output(output: nbformat.NotebookNode) -> None:
    """Text, sanitised tables and pictures with their data; all else is dropped."""
    if output.output_type == "stream":
        output.text = cut(reveal("".join(output.text)))
    if output.output_type == "error":
        output.traceback = [cut(reveal(COLOUR.sub("", line))) for line in output.traceback]
    data = output.get("data")
    if data is None:
        return
    told = output.get("metadata", {}).get("image/png", {})
    output.metadata = {"alt": find_alt(told), "area": "", "chart": ""}
    if "image/png" in data:
        output.metadata["area"] = measure_picture(data["image/png"])
        output.metadata["chart"] = embed_chart(data.get(CHART))
    for mime in [each for each in data if each not in ("text/html", "text/plain", "image/png")]:
        del data[mime]
    if "text/plain" in data:
        data["text/plain"] = cut(reveal("".join(data["text/plain"])))
    if "text/html" in data:
        # pandas sends a style block along; the page has its own, and sanitised it would show as text.
        table = re.sub(r"<style scoped>.*?</style>", "", "".join(data["text/html"]), flags=re.DOTALL)
        data["text/html"] = clean_html(table, TAGS, {"*": ["class"], "td": SPANS, "th": SPANS})


def find_alt(told: object) -> str:
    """A figure's alternative text, which its own drawing wrote."""
    alt = told.get("alt") if isinstance(told, dict) else None
    return reveal(alt) if isinstance(alt, str) else "a figure without a description"


def measure_picture(encoded: str) -> str:
    """Width and height as attributes, so that a page does not jump while it opens."""
    try:
        head = base64.b64decode("".join(encoded)[:64])
        width, height = struct.unpack(">II", head[16:24])
    except (ValueError, struct.error):
        return ""
    return f' width="{width}" height="{height}"'


def embed_chart(data: object) -> str:
    """A figure's data as a block that no browser runs, and that no text in it can end."""
    if not isinstance(data, dict):
        return ""
    text = json.dumps(reveal_all(data), ensure_ascii=True, separators=(",", ":"))
    return f'<script type="application/json" class="data">{text.replace("<", chr(92) + "u003c")}</script>'


def reveal_all(data: object) -> object:
    """Every text of a JSON value with its hidden characters shown."""
    if isinstance(data, str):
        return reveal(data)
    if isinstance(data, dict):
        return {reveal(str(name)): reveal_all(value) for name, value in data.items()}
    if isinstance(data, list):
        return [reveal_all(each) for each in data]
    return data


# --- their order ------------------------------------------------------------------------------


def arrange_cells(cells: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """The title, then the answer with its figure, then the rest as it came.

    A notebook comes to its answer at its end, a reader wants it first: cells tagged `answer` move up, and the
    figure tagged `headline` goes behind the first of them that shows something. Nothing stands there twice.
    """
    answer = list(pick_cells(cells, ANSWER))
    if not answer:
        return cells
    figure = list(pick_cells(cells, HEADLINE))
    first = next((at for at, cell in enumerate(answer) if cell.get("outputs")), 0) + 1
    shown = [*answer[:first], *figure, *answer[first:]]
    shown[0].metadata.opens = '<section class="answer">'
    shown[-1].metadata.closes = "</section>"
    title, *rest = [*split_title(cells[0]), *cells[1:]]
    title.metadata.prose = re.sub(r"(<h1[^>]*>)\d+ ", r"\1", title.metadata.get("prose", ""), count=1)
    moved = [point_up(cell, answer[0]) if any(cell is each for each in figure) else cell for cell in rest]
    return [title, *shown, *(cell for cell in moved if not any(cell is each for each in answer))]


def name_study(title: nbformat.NotebookNode, study: str) -> None:
    """Whose report it is, above its title."""
    label = f'<p class="study">Study {html.escape(reveal(study))}</p>'
    title.metadata.prose = label + title.metadata.get("prose", "")


def point_up(figure: nbformat.NotebookNode, answer: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """What stands where a figure was: a way to where it went."""
    cell = nbformat.v4.new_markdown_cell("", id=f"{figure.get('id', 'figure')}-moved")
    heading = HEADING.search(answer.metadata.get("prose", ""))
    place = f'<a href="#{heading[2]}">{heading[3]}</a>' if heading else "the answer"
    prose = f'<p class="moved">This figure stands at the top of the page, with {place}.</p>'
    cell.metadata.update({"prose": prose, "opens": "", "closes": ""})
    return cell


def split_title(cell: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The opening in two: its heading, and what it says below."""
    heading, _, below = cell.metadata.get("prose", "").partition("</h1>")
    if not below.strip():
        return [cell]
    pair = copy.deepcopy(cell), copy.deepcopy(cell)
    for part, prose in zip(pair, (f"{heading}</h1>", below), strict=True):
        part.metadata.prose = prose
    pair[1]["id"] = f"{cell.get('id', 'opening')}-below"
    return list(pair)


def pick_cells(cells: list[nbformat.NotebookNode], tag: str) -> Iterator[nbformat.NotebookNode]:
    """The cells with a tag."""
    return (cell for cell in cells if tag in cell.metadata.get("tags", ()))
