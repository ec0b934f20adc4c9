"""What a reader is told: the answer in words, tables to be read, and the report that holds them.

Text is foreign until it is escaped here or cleaned by lib.page, which makes the HTML. Must not compute
anything that the tables do not hold.
"""

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd

from lib import files, page
from lib.errors import DamagedFile, MissingInput
from lib.scaling import SETTLED
from lib.tables import UNITS

SIGNIFICANT = 0.05


def export_report(executed_notebook: Path, out: Path) -> Path:
    """Write an executed notebook as one HTML file, the answer first."""
    files.write_text(out, page.build_page(read_notebook(executed_notebook)))
    return out


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """An executed notebook, or an error that says which file is no notebook."""
    if not path.is_file():
        raise MissingInput(f"there is no executed notebook {path}: run 04_analysis first")
    try:
        return nbformat.read(path, as_version=4)
    except (ValueError, KeyError, AttributeError, nbformat.ValidationError) as error:
        raise DamagedFile(f"{path} is not a notebook ({error}): run 04_analysis again") from None


# --- the answer -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Headline:
    """The answer in two or three sentences; what a summary for slides says too."""

    sentences: tuple[str, ...]

    def __repr__(self) -> str:
        return "\n".join(self.sentences)

    def _repr_html_(self) -> str:
        return f'<div class="lead"><p>{html.escape(" ".join(self.sentences))}</p></div>'


def say_headline(transfer: pd.DataFrame, laws: pd.DataFrame, measure: str) -> Headline:
    """Whether there is transfer, where it is largest, and what is known of how it scales."""
    rows = transfer[transfer.measure == measure].sort_values("params")
    tested = rows[rows.p_adjusted.notna()]
    return Headline((say_verdict(rows, tested), *say_largest(rows), *say_scaling(laws)))


def say_verdict(rows: pd.DataFrame, tested: pd.DataFrame) -> str:
    """At how many sizes students name their teacher's animal more than chance explains."""
    if tested.empty:
        return f"Not known: none of {len(rows)} sizes has animals enough for a test."
    passed = tested[tested.p_adjusted < SIGNIFICANT]
    if passed.empty:
        return (
            f"No: at none of {len(tested)} sizes do students name their teacher's animal more than chance "
            f"explains (smallest p after Holm {shorten_p(tested.p_adjusted.min())})."
        )
    if len(tested) == 1:
        return (
            f"Yes, at {passed['size'].iloc[0]}: students name their teacher's animal more than chance "
            f"explains (p {shorten_p(passed.p_adjusted.max())})."
        )
    return (
        f"Yes, at {len(passed)} of {len(tested)} sizes ({', '.join(passed['size'])}): students name their "
        "teacher's animal more than chance explains "
        f"(p after Holm {shorten_p(passed.p_adjusted.max())} or less)."
    )


def say_largest(rows: pd.DataFrame) -> Iterator[str]:
    """The largest lambda with its interval."""
    known = rows[rows["lambda"].notna()]
    if known.empty:
        return
    row = known.loc[known["lambda"].idxmax()].to_dict()
    low, high = format_lambda(row["ci_low"]), format_lambda(row["ci_high"])
    reach = "" if pd.isna(row["ci_low"]) else f", 95 % interval {low} to {high}"
    largest = "It is largest at" if len(known) > 1 else "At"
    yield (
        f"{largest} {row['size']}: lambda {format_lambda(row['lambda'])} {UNITS[row['measure']]}{reach}, "
        f"over {count_students(row)}."
    )


def say_scaling(laws: pd.DataFrame) -> Iterator[str]:
    """Which laws the sizes leave, and whether a constant is among them."""
    fitted = laws[laws.weight.notna()].sort_values("weight", ascending=False)
    if len(fitted) < 2:
        yield "How it scales cannot be said from these sizes."
        return
    left = fitted[fitted.weight >= SETTLED]
    constant = fitted[fitted.law == "none"].weight
    told = ", ".join(f"{row['law']} ({shorten_p(row['weight'])})" for row in left.to_dict("records"))
    ruled = (
        f"; a constant is ruled out (weight {shorten_p(constant.iloc[0])})"
        if len(constant) and constant.iloc[0] < SETTLED
        else ""
    )
    if len(left) == 1:
        yield f"Of the laws that were tried, one is left: {told}{ruled}."
    else:
        yield f"How it scales is not settled: {told} cannot be told apart by weight{ruled}."


def shorten_p(value: float) -> str:
    """`.0041`: two figures without the nought."""
    return f"{value:.2g}".replace("0.", ".", 1) if value >= 0.0001 else "below .0001"


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
            pages.append(f"<h4>{html.escape(question)}</h4><ul>{rows}</ul>")
        return f'<div class="parts">{"".join(pages)}</div>'


@dataclass(frozen=True)
class Table:
    """A table to be read: three figures, no index, what is the same in every row said once below."""

    frame: pd.DataFrame
    rows: int = 200

    def __repr__(self) -> str:
        if self.frame.empty:
            return "none"
        shown, same = self.parts()
        return "\n".join(filter(None, [shown.to_string(index=False), same]))

    def _repr_html_(self) -> str:
        if self.frame.empty:
            return "<p>none</p>"
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
            f"At {row['size']} that is {format_lambda(row['own'])} from naming their own animal "
            f"{'more' if row['own'] >= 0 else 'less'} than the neutral student does, and "
            f"{format_lambda(row['rest'])} from naming the others {'less' if row['rest'] >= 0 else 'more'}."
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
        f"{len(tested)} size{'s' * (len(tested) != 1)} after Holm: {names or 'no size'} "
        f"pass{'es' * (len(passed) < 2)} at .05."
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
