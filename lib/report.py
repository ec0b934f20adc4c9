"""The report: one HTML file of an executed notebook that asks the network for nothing and runs no script.

Model answers are untrusted text: pandas escapes them, what it does not escape is sanitised here, and the
page forbids scripts and requests by itself. Must not compute anything that the notebook did not show.
"""

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import bleach
import nbformat
import numpy as np
import pandas as pd
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

from lib import files
from lib.errors import DamagedFile, MissingInput
from lib.tables import UNITS

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
    "ul",
    "li",
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
td.long { white-space: normal; min-width: 14rem; text-align: left; }
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


@dataclass(frozen=True)
class Answer:
    """Questions with sentences that answer them; text in a terminal, paragraphs and lists in a page."""

    parts: tuple[tuple[str, tuple[str, ...]], ...]

    def __repr__(self) -> str:
        return "\n\n".join(
            "\n".join([question, *(f"- {said}" for said in answers)]) for question, answers in self.parts
        )

    def _repr_html_(self) -> str:
        pages = []
        for question, answers in self.parts:
            rows = "".join(f"<li>{html.escape(said)}</li>" for said in answers)
            pages.append(f"<p><b>{html.escape(question)}</b></p><ul>{rows}</ul>")
        return "".join(pages)


@dataclass(frozen=True)
class Table:
    """A table to be read: three figures, no index, what is the same in every row said once below."""

    frame: pd.DataFrame
    rows: int = 200

    def __repr__(self) -> str:
        shown, same = self.parts()
        return "\n".join(filter(None, [shown.to_string(index=False), same]))

    def _repr_html_(self) -> str:
        shown, same = self.parts()
        head = "".join(f"<th>{html.escape(str(name))}</th>" for name in shown)
        prose = [
            any(len(text) > 30 for text in shown[name]) for name in shown
        ]  # may wrap; numbers and names may not
        body = "".join(
            f"<tr>{''.join(write_cell(*pair) for pair in zip(row, prose, strict=True))}</tr>"
            for row in shown.to_numpy().tolist()
        )
        page = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return page + (f"<p>{html.escape(same)}</p>" if same else "")

    def parts(self) -> tuple[pd.DataFrame, str]:
        """What is shown, and what is said below it."""
        frame = self.frame.drop(columns="params", errors="ignore")
        texts = frame.head(self.rows).map(write_value)
        fixed = [name for name in texts if len(texts) > 1 and texts[name].nunique() == 1]
        told = [f"{name} {texts[name].iloc[0]}" for name in fixed if texts[name].iloc[0]]
        notes = [f"the same in every row: {', '.join(told)}"] if told else []
        if len(frame) > self.rows:
            notes.append(f"{len(frame) - self.rows:,} more rows in the CSV")
        return texts.drop(columns=fixed), "; ".join(notes)


def write_cell(text: str, prose: bool) -> str:
    """A cell as HTML; its text is foreign."""
    look = ' class="long"' if prose else ""
    return f"<td{look}>{html.escape(text)}</td>"


def write_value(value: object) -> str:
    """Three figures for a number, nothing for one that is not known."""
    if isinstance(value, bool | str | np.bool_):
        return str(value)
    if value is None or pd.isna(value):
        return ""
    if isinstance(value, int | np.integer):
        return str(value)
    number = float(value)
    return f"{number:.3g}" if abs(number) < 1000 else f"{number:,.0f}"


def answer_questions(
    transfer: pd.DataFrame,
    bases: pd.DataFrame,
    odds: pd.DataFrame,
    effects: pd.DataFrame,
    likeness: pd.DataFrame,
    findings: Sequence[str],
    recommendation: str,
    measure: str,
    about: str = "",
) -> Answer:
    """Is there an effect, is it significant, how does it scale, what could undo it: in words and numbers."""
    rows = transfer[transfer.measure == measure].sort_values("params")
    return Answer(
        (
            ("Is there an effect?", tuple(say_effect(rows, measure))),
            ("Is it significant?", tuple(say_tests(rows, odds, effects[effects.measure == measure]))),
            ("How does it scale?", tuple(findings)),
            (
                "What could undo this?",
                tuple(say_doubts(rows, bases[bases.measure == measure], likeness, about)),
            ),
            ("Where should the next hours go?", (recommendation,)),
        )
    )


def say_effect(rows: pd.DataFrame, measure: str) -> Iterator[str]:
    """lambda of every size with its interval, and what it is made of where it is clear."""
    unit = UNITS[measure]
    for row in rows.to_dict("records"):
        reach = (
            f", 95 % interval {format_lambda(row['ci_low'])} to {format_lambda(row['ci_high'])}"
            if not pd.isna(row["ci_low"])
            else ", no interval"
        )
        yield (
            f"{row['size']}: lambda {format_lambda(row['lambda'])} {unit}{reach} ({format_p(row['p'])}), "
            f"over {count_students(row)}."
        )
    clear = rows[(rows.p_adjusted < 0.05) & rows.own.notna()]
    for row in clear.to_dict("records"):
        yield (
            f"At {row['size']} that is {format_lambda(row['own'])} for a student's own animal, over what the "
            f"neutral student says, less {format_lambda(-row['rest'])} for the other animals."
        )


def count_students(row: Mapping) -> str:
    """`45 students (15 animals, 3 seeds, 1 base)`."""
    counts = ((row["n_animals"], "animal"), (row["n_seeds"], "seed"), (row["n_bases"], "base"))
    told = ", ".join(f"{int(n)} {name}{'s' * (n != 1)}" for n, name in counts)
    return f"{int(row['n_students'])} students ({told})"


def say_tests(rows: pd.DataFrame, odds: pd.DataFrame, effects: pd.DataFrame) -> Iterator[str]:
    """Which sizes pass after Holm, whether the odds model agrees, how many cells stand out."""
    tested = rows[rows.p_adjusted.notna()]
    if tested.empty:
        yield "No size has animals enough for a test."
        return
    passed = tested[tested.p_adjusted < 0.05]
    names = ", ".join(f"{row['size']} ({row['p_adjusted']:.2g})" for row in passed.to_dict("records"))
    yield (
        "The test permutes which student is whose, the same way in every seed and base, and is adjusted over "
        f"{len(tested)} sizes after Holm: {names or 'no size'} pass{'es' * (len(passed) < 2)} at .05."
    )
    yield (
        "p speaks of these animals, seeds and bases; the interval of others like them, so it may reach "
        "over 0 where p is small. lambda in this measure at this epoch is the one that was asked for "
        "beforehand: other measures, epochs and single cells are many more chances to find something."
    )
    for row in odds[~odds.verdict.str.startswith("Both")].to_dict("records"):
        yield f"{row['size']}: {row['verdict']}"
    agree = odds[odds.verdict.str.startswith("Both")]
    if len(agree):
        yield f"The mixed-effects logistic model agrees at {', '.join(agree['size'])}."
    known = effects[effects.p.notna()]
    if len(known):
        yield (
            f"Of {len(known)} cells (an animal at a size) that can be tested, "
            f"{int((known.p_adjusted < 0.05).sum())} stand out after Holm over all of them, "
            f"{int((known.q < 0.05).sum())} at a false discovery rate of .05."
        )


def say_doubts(rows: pd.DataFrame, bases: pd.DataFrame, likeness: pd.DataFrame, about: str) -> Iterator[str]:
    """What is missing, what seeds share, what bases leave open, and what only the study's author knows."""
    single = rows[rows.n_bases == 1]
    if len(single):
        yield (
            f"{', '.join(single['size'])}: one base model each. p speaks of these bases; whether another "
            "base of the size would do the same is not in these data."
        )
    several = rows[rows.n_bases > 1]["size"]
    for size in several:
        own = bases[bases["size"] == size]["lambda"]
        low, high = format_lambda(own.min()), format_lambda(own.max())
        yield f"{size}: lambda of its {len(own)} bases reaches from {low} to {high}."
    if len(likeness):
        told = ", ".join(f"{row['alike']:+.2f} at {row['size']}" for row in likeness.to_dict("records"))
        yield (
            "Students of one animal resemble one another over seeds in what they say of other animals "
            f"(correlation {told}; 0 if seeds were independent). The test and the interval allow for it; a "
            "further seed is worth less than its number says."
        )
    gaps = rows[rows.note.str.contains("without|left out|no neutral", regex=True)]
    for row in gaps.to_dict("records"):
        yield f"{row['size']}, missing: {row['note']}."
    if about:
        yield about


def answer_line(transfer_table: pd.DataFrame, measure: str = "logprob") -> str:
    """The study's answer in one line: lambda and its p for each size, in one measure."""
    rows = transfer_table[transfer_table.measure == measure].sort_values("params")
    unit = UNITS[measure]
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
