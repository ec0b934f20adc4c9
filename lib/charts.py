"""The same curves for hovering: what lib/web/charts.js draws, from the table that the figure was drawn from.

A chart is plain JSON (its fields stand at the head of charts.js) and travels with the figure's picture in the
executed notebook. Like captions, it computes nothing new.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from lib.captions import CAPTIONS, MEASURE_LABELS, format_p, list_sizes, say_interval, write
from lib.colours import COLOURS, HUES

CHART = "application/vnd.subliminal-scaling.chart+json"  # what a chart is called beside its picture
MEAN, LAW, BASE = "mean of a size, 95 % interval", "law", "each base model"
STUDENTS = "students of"
LINES = (*HUES[:5], "#8c7a00", HUES[6])  # yellow lines cannot be read on white


def make_chart(name: str, table: pd.DataFrame) -> dict | None:
    """The chart of a figure, or none where only its picture exists."""
    if name not in CHARTS or table.empty:
        return None
    return {**CHARTS[name](table), "describe": CAPTIONS[name](table), "legend": True}


def number(value: object) -> float | None:
    """A number as JSON knows it: one that is not known is null."""
    return None if value is None or pd.isna(value) or math.isinf(float(value)) else float(f"{value:.6g}")


def scaling_chart(table: pd.DataFrame) -> dict:
    """lambda over parameters: every size, base and student a point, the students of an animal a series."""
    sizes = table[table.level == "size"].sort_values("params")
    unit = MEASURE_LABELS[sizes.measure.iloc[0]]
    bases = table[(table.level == "base") & table["size"].isin(sizes["size"][sizes.n_bases > 1])]
    students = table[(table.level == "student") & table["lambda"].notna()]
    series = [law_series(own, at) for at, (_, own) in enumerate(table[table.level == "band"].groupby("size"))]
    series += student_series(students, sizes, unit)
    if len(bases):
        points = [size_point(row, unit) for row in bases.to_dict("records")]
        series.append({"name": BASE, "colour": HUES[3], "shape": "ring", "points": points})
    points = [size_point(row, unit) for row in sizes.to_dict("records")]
    series.append({"name": MEAN, "colour": HUES[0], "shape": "square", "points": points})
    ticks = [[float(row["params"]), str(row["size"])] for row in sizes.to_dict("records")]
    return {
        "title": f"Transfer over model size: {int(sizes.n_students.sum())} students",
        "x": {"label": "model size (parameters, log scale)", "log": True, "ticks": ticks},
        "y": {"label": f"transfer factor λ ({unit})", "zero": True, **view_means(sizes)},
        "series": series,
    }


def view_means(sizes: pd.DataFrame) -> dict[str, float]:
    """The view that means and intervals need, with some room; students beyond it stand at its edge."""
    values = pd.concat([sizes["lambda"], sizes.ci_low, sizes.ci_high]).dropna()
    if values.empty:
        return {}
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    room = 0.25 * (high - low) or 1.0
    return {"min": low - room, "max": high + room}


def size_point(row: Mapping, unit: str) -> dict:
    """A size or one of its bases, with its interval."""
    name = row["size"] if row["level"] == "size" else f"base {int(row['base'])} of {row['size']}"
    tip = [
        str(name),
        f"λ {write(row['lambda'])} {unit}{say_interval(row['ci_low'], row['ci_high'])}",
        f"{format_p(row['p'])}, n = {int(row['n_students'])} students",
    ]
    point = {"x": number(row["params"]), "y": number(row["lambda"]), "tip": "\n".join(tip)}
    if row["level"] == "base":
        return {**point, "x": number(1.06 * row["params"])}  # aside of its size
    return {**point, "low": number(row["ci_low"]), "high": number(row["ci_high"])}


def law_series(band: pd.DataFrame, at: int) -> dict:
    """A law's curve with its band."""
    rows = band.sort_values("params").to_dict("records")
    ends = [
        {"x": number(row["params"]), "low": number(row["ci_low"]), "high": number(row["ci_high"])}
        for row in rows
    ]
    points = [{"x": number(row["params"]), "y": number(row["lambda"])} for row in rows]
    name = f"{LAW}: {band['size'].iloc[0]}, 95 % band"
    return {"name": name, "colour": LINES[(3 + at) % 7], "shape": "none", "line": True, "points": points,
            "band": ends}  # fmt: skip


def student_series(students: pd.DataFrame, sizes: pd.DataFrame, unit: str) -> list[dict]:
    """A series per animal, its students set aside from one another by base and seed."""
    if students.empty:
        return []
    gaps = np.diff(np.sort(np.log10(sizes.params.to_numpy(dtype=float))))
    width = 0.45 * (gaps.min() if len(gaps) else 0.4)
    keys = list(zip(students.animal, students.base, students.seed, strict=True))
    place = {key: at for at, key in enumerate(dict.fromkeys(sorted(keys)))}
    found = []
    for animal, own in students.groupby("animal", sort=False):
        points = []
        for row in own.to_dict("records"):
            at = place[animal, row["base"], row["seed"]] / max(1, len(place) - 1) - 0.5
            tip = [
                f"student of {animal}",
                f"{row['size']}, base {int(row['base'])}, seed {int(row['seed'])}",
                f"own excess {write(row['lambda'])} {unit}",
            ]
            x = number(row["params"] * 10 ** (width * at))
            points.append({"x": x, "y": number(row["lambda"]), "tip": "\n".join(tip)})
        colour = COLOURS.get(str(animal), HUES[0])
        found.append({"name": str(animal), "group": STUDENTS, "colour": colour, "shape": "dot", "small": True,
                      "faint": True, "points": points})  # fmt: skip
    return found


def curves_chart(x: str, label: str, log: bool) -> Callable[[pd.DataFrame], dict]:
    """lambda over a column, a line per size with its band and its pointwise intervals."""

    def chart(table: pd.DataFrame) -> dict:
        unit = MEASURE_LABELS[table.measure.iloc[0]]
        whole = "band_low" in table and table.band_low.notna().any()
        low, high = ("band_low", "band_high") if whole else ("ci_low", "ci_high")
        series = []
        for at, size in enumerate(list_sizes(table)):
            rows = table[table["size"] == size].sort_values(x).to_dict("records")
            points = [curve_point(row, x, size, unit, whole) for row in rows]
            band = [{"x": number(row[x]), "low": number(row[low]), "high": number(row[high])} for row in rows]
            series.append({"name": str(size), "group": "size", "colour": LINES[at % 7], "shape": "dot",
                           "line": True, "points": points, "band": band})  # fmt: skip
        ticks = [[float(value), f"{value:,.0f}"] for value in sorted(table[x].unique())]
        words = "simultaneous 95 % bands" if whole else "pointwise 95 % bands"
        return {
            "title": f"Transfer over {label}, {words}",
            "x": {"label": label + (" (log scale)" if log else ""), "log": log, "ticks": ticks},
            "y": {"label": f"transfer factor λ ({unit})", "zero": True},
            "series": series,
        }

    return chart


def curve_point(row: Mapping, x: str, size: str, unit: str, whole: bool) -> dict:
    """One size at one place; whiskers only where the band is not the same interval."""
    tip = [
        f"{size} at {row[x]:,.0f}",
        f"λ {write(row['lambda'])} {unit}{say_interval(row['ci_low'], row['ci_high'])}",
        f"n = {int(row['n_students'])} students",
    ]
    reach = {"low": number(row["ci_low"]), "high": number(row["ci_high"])} if whole else {}
    return {"x": number(row[x]), "y": number(row["lambda"]), "tip": "\n".join(tip), **reach}


CHARTS: dict[str, Callable[[pd.DataFrame], dict]] = {
    "scaling_curve": scaling_chart,
    "epoch_curve": curves_chart("epoch", "epoch of fine-tuning", False),
    "dose_curve": curves_chart("n_keep", "lists that a student read", True),
}
