"""What a figure shows in words, written from its table: the alternative text of its picture.

One function per figure of lib.plots, by its name; it reads what was drawn and computes nothing new.
"""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

MEASURE_LABELS = {
    "logprob": "nats of log-probability",
    "rate": "percentage points of answers",
}
SHOWN = 3  # of a long list, as many are named


def describe_figure(name: str, table: pd.DataFrame, title: str = "") -> str:
    """The alternative text of the figure `name`; its title and size where nobody wrote a better one."""
    if table.empty:
        return "Nothing to draw: there are no data for this figure."
    if name in CAPTIONS:
        return CAPTIONS[name](table)
    return f"{title or name.replace('_', ' ').capitalize()}. Drawn from {len(table)} rows."


def format_p(p: float) -> str:
    """p as papers write it."""
    if np.isnan(p):
        return "p unknown"
    if p < 0.0001:
        return "p < .0001"
    return f"p = {p:.4f}".replace("0.", ".") if p < 0.01 else f"p = {p:.2f}".replace("0.", ".")


def write(value: float) -> str:
    """Three figures."""
    return "unknown" if pd.isna(value) else f"{value:.3g}"


def say_interval(low: float, high: float, name: str = "95 % interval") -> str:
    """`, 95 % interval 1 to 2`, or nothing."""
    return "" if pd.isna(low) or pd.isna(high) else f", {name} {write(low)} to {write(high)}"


def unit_of(table: pd.DataFrame) -> str:
    """The measure's unit in words."""
    return MEASURE_LABELS.get(table.measure.iloc[0], str(table.measure.iloc[0]))


def list_sizes(table: pd.DataFrame) -> list[str]:
    """Sizes from the smallest to the largest."""
    return list(dict.fromkeys(table.sort_values("params")["size"]))


def span(values: Iterable[float]) -> str:
    """`2`, or `1-2` where the counts differ."""
    ends = [f"{end:,.0f}" for end in (min(values), max(values))]
    return "-".join(dict.fromkeys(ends))


# --- over sizes -------------------------------------------------------------------------------


def caption_scaling(table: pd.DataFrame) -> str:
    sizes = table[table.level == "size"].sort_values("params")
    told = "; ".join(
        f"{row['size']}: {write(row['lambda'])}{say_interval(row['ci_low'], row['ci_high'])}, "
        f"{format_p(row['p'])}"
        for row in sizes.to_dict("records")
    )
    laws = list(dict.fromkeys(table["size"][table.level == "band"]))
    more = {"base": "each base model", "student": "each student's own excess"}
    shown = [words for level, words in more.items() if (table.level == level).any()]
    shown += [f"the likeliest law, {law}" for law in laws]
    return (
        f"Transfer factor lambda over model size on a logarithmic axis, in {unit_of(sizes)}, "
        f"{int(sizes.n_students.sum())} students. {told}. Drawn besides: {', '.join(shown) or 'nothing'}."
    )


def caption_curves(what: str, x: str) -> Callable[[pd.DataFrame], str]:
    def caption(table: pd.DataFrame) -> str:
        told = []
        for size in list_sizes(table):
            own = table[table["size"] == size].sort_values(x)
            first, last = own.iloc[0], own.iloc[-1]
            told.append(
                f"{size} (n = {int(last.n_students)}): from {write(first['lambda'])} at {first[x]:,.0f} to "
                f"{write(last['lambda'])} at {last[x]:,.0f}{say_interval(last.ci_low, last.ci_high)}"
            )
        return f"Transfer factor lambda over {what}, in {unit_of(table)}, a line per size. {'; '.join(told)}."

    return caption


def caption_split(table: pd.DataFrame) -> str:
    told = "; ".join(
        f"{row['size']}: own {write(row['own'])}, rest {write(row['rest'])}, lambda {write(row['lambda'])}"
        for row in table.sort_values("params").to_dict("records")
    )
    return (
        f"Bars of what lambda is made of, in {unit_of(table)}: naming the teacher's animal more (own) and "
        f"the others less (rest). {told}. n = {span(table.n_students)} students a size."
    )


def caption_beside(table: pd.DataFrame) -> str:
    told = []
    for study, own in table.groupby("study", sort=False):
        rows = own.sort_values("params").to_dict("records")
        values = "; ".join(f"{row['size']} {write(row['lambda'])}" for row in rows)
        told.append(f"{study} ({unit_of(own)}, n = {span(own.n_students)} students a size): {values}")
    return f"Transfer factor lambda over model size in several studies. {'. '.join(told)}."


def caption_laws(table: pd.DataFrame) -> str:
    rows = table.sort_values("weight", ascending=False, na_position="last").to_dict("records")
    told = "; ".join(
        f"{row['law']}: weight {write(row['weight'])}, error for a size left out {write(row['loso_rmse'])}"
        if not pd.isna(row["weight"])
        else f"{row['law']}: not fitted"
        for row in rows
    )
    return f"Candidate laws of lambda over size, the likeliest first. {told}."


# --- within a size ----------------------------------------------------------------------------


def caption_matrix(table: pd.DataFrame) -> str:
    told = []
    for size in list_sizes(table):
        own = table[table["size"] == size]
        diagonal, rest = own[own.animal == own.named], own[own.animal != own.named]
        told.append(f"{size}: {write(diagonal.lift.mean())} against {write(rest.lift.mean())}")
    return (
        f"Colour maps of every student's lift for every animal over the neutral student, in "
        f"{unit_of(table)}; {table.animal.nunique()} animals, mean of n = {span(table.n)} bases and seeds. "
        f"Mean of the diagonal against the mean of all else: {'; '.join(told)}."
    )


def caption_forest(table: pd.DataFrame) -> str:
    told = []
    for size in list_sizes(table):
        own = table[table["size"] == size].sort_values("pooled", ascending=False, na_position="last")
        best = ", ".join(
            f"{row['animal']} {write(row['pooled'])}" for row in own.head(SHOWN).to_dict("records")
        )
        found = int((own.p_adjusted < 0.05).sum())
        told.append(
            f"{size}: {found} of {len(own)} animals found at adjusted p < .05; largest {best}; "
            f"lambda {write(own['lambda'].iloc[0])}"
        )
    return (
        f"Transfer animal by animal, pooled effects with 95 % intervals in {unit_of(table)}. "
        f"{'. '.join(told)}."
    )


def caption_bars(table: pd.DataFrame) -> str:
    size = table["size"].iloc[0]
    wide = table.pivot(index="animal", columns="who", values="value")
    students, neutral = wide.get("animal student"), wide.get("neutral student")
    told = ""
    if students is not None and neutral is not None:
        gain = (students - neutral).sort_values(ascending=False)
        told = " Largest gains over the neutral student: " + ", ".join(
            f"{name} {write(neutral[name])} to {write(students[name])} %" for name in gain.index[:SHOWN]
        )
    return (
        f"{size}: bars of the share of answers naming each of {len(wide)} animals, by the untuned model, the "
        f"neutral student and the animal's own student; n = {span(table.n)} bases and seeds.{told}."
    )


def caption_stack(table: pd.DataFrame) -> str:
    size = table["size"].iloc[0]
    own = table[table.student == table.said].sort_values("share", ascending=False)
    mean = f"{write(own.share.mean())} % on average" if len(own) else "nowhere"
    rows = own.head(SHOWN).to_dict("records")
    best = ", ".join(f"{row['student']} {write(row['share'])} %" for row in rows)
    return (
        f"{size}: what each of {table.student.nunique()} students answers, stacked to 100 %; "
        f"n = {span(table.n)} bases and seeds. Its own animal is named in {mean}"
        + (f", most by {best}." if best else ".")
    )


# --- power ------------------------------------------------------------------------------------


def caption_power(table: pd.DataFrame) -> str:
    told = []
    for size, own in table[table.own.astype(bool)].groupby("size", sort=False):
        row = own.iloc[0]
        told.append(
            f"{size}: lambda from {write(row.detectable)} up is found, its own is {write(row['lambda'])}"
        )
    return (
        f"Power of the test over the true lambda ({unit_of(table)}), a curve per size. With 80 % power: "
        f"{'; '.join(told)}."
    )


def caption_needed(table: pd.DataFrame) -> str:
    told = []
    for size, own in table.groupby("size", sort=False):
        needs = ", ".join(
            f"{row['what']} {say_needed(row['needed'])} (now {row['now']:,.3g})"
            for row in own.to_dict("records")
        )
        told.append(f"{size}: {needs}")
    return f"What would find each size's own lambda with 80 % power, one thing changed. {'; '.join(told)}."


def say_needed(number: float) -> str:
    """How many, or that no number would do."""
    return "no number is enough" if pd.isna(number) else f"{number:,.0f}"


CAPTIONS: dict[str, Callable[[pd.DataFrame], str]] = {
    "scaling_curve": caption_scaling,
    "epoch_curve": caption_curves("epochs of fine-tuning", "epoch"),
    "dose_curve": caption_curves("the number of lists a student read", "n_keep"),
    "split_bars": caption_split,
    "beside_figure": caption_beside,
    "laws_figure": caption_laws,
    "student_matrix": caption_matrix,
    "effect_forest": caption_forest,
    "preference_bars": caption_bars,
    "preference_stack": caption_stack,
    "power_curve": caption_power,
    "needed_figure": caption_needed,
}
