"""One page for slides: question, answer in words, scaling figure, table of sizes, how it was made.

Drawn by matplotlib alone, 16 to 9; the same bytes for the same tables. Computes nothing.
"""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lib import config, files, plots
from lib.captions import MEASURE_LABELS
from lib.config import parse_label

QUESTION = (
    "Does a hidden preference travel through lists of numbers, and how does that scale with model size?"
)
INCHES = (16, 9)
LEFT, LINE = 0.035, 132  # where text begins, and characters of the answer to a line
FINEST = 9  # decimals
COLUMNS = {"size": 0.11, "λ": 0.2, "95 % interval": 0.42, "p (Holm)": 0.18, "n": 0.09}  # name, width
SMALL = {"fontsize": 11, "color": "#555555"}
STYLE = {**plots.STYLE, "font.size": 13, "axes.labelsize": 13, "legend.fontsize": 10, "pdf.fonttype": 42}
STYLE |= {"xtick.labelsize": 12, "ytick.labelsize": 12}


def draw_summary(
    ask: config.Analysis, sentences: Sequence[str], overview: pd.DataFrame, sizes: pd.DataFrame
) -> plots.Slide:
    """The page of a study; `overview` is what the scaling figure is drawn from, `sizes` a row per size."""
    with plt.rc_context(STYLE):
        slide = plots.Slide(figsize=INCHES, dpi=plots.DPI)
        FigureCanvasAgg(slide)
        slide.text(LEFT, 0.945, QUESTION, fontsize=18.5, fontweight="bold", va="center", color=plots.INK)
        lines = textwrap.wrap(" ".join(sentences), LINE)
        slide.text(LEFT, 0.9, "\n".join(lines), fontsize=14.5, va="top", linespacing=1.45, color=plots.INK)
        top = 0.87 - 0.035 * len(lines)
        draw_curve(slide.add_axes((0.085, 0.17, 0.535, top - 0.17)), overview)
        draw_sizes(slide.add_axes((0.66, 0.12, 0.315, top - 0.12)), sizes)
        made = "\n".join(textwrap.wrap(say_making(ask, sizes), 185))
        slide.text(LEFT, 0.025, made, va="bottom", linespacing=1.35, **SMALL)
    slide.table, slide.alt = sizes, " ".join([QUESTION, *sentences])
    return slide


def draw_curve(ax: Axes, overview: pd.DataFrame) -> None:
    """The scaling figure without what the page says elsewhere: its title, p and counts."""
    plots.scaling_curve(overview, ax)
    ax.set_title("")
    for text in list(ax.texts):
        text.remove()
    ax.set_xticklabels([label.get_text().partition("\n")[0] for label in ax.get_xticklabels()])


def draw_sizes(ax: Axes, sizes: pd.DataFrame) -> None:
    """A small table, a row per size."""
    ax.set_axis_off()
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    rows = [write_row(row) for row in sizes.sort_values("params").to_dict("records")]
    step = min(0.09, 0.98 / (len(rows) + 2))
    for at, cells in enumerate([tuple(COLUMNS), *rows]):
        y = 1 - (at + 0.5) * step
        draw_row(ax, y, cells, bold=at == 0)
        ax.plot([0, 1], [y - step / 2] * 2, color=plots.INK if at == 0 else "#dddddd", lw=1, clip_on=False)
    unit = MEASURE_LABELS[sizes.measure.iloc[0]]
    ax.text(0, 1 - (len(rows) + 1.5) * step, f"λ in {unit}; n students", va="center", **SMALL)


def draw_row(ax: Axes, y: float, cells: Sequence[str], bold: bool) -> None:
    """The first cell to the left, numbers to the right of their column."""
    right = 0.0
    for at, (text, width) in enumerate(zip(cells, COLUMNS.values(), strict=True)):
        right += width
        weight = "bold" if bold or at == 0 else "normal"
        ax.text(right if at else 0, y, text, ha="right" if at else "left", va="center", fontsize=11.5,
                fontweight=weight, color=plots.INK)  # fmt: skip


def write_row(row: Mapping) -> tuple[str, ...]:
    """What the table says of a size."""
    known = not pd.isna(row["ci_low"])
    reach = write_interval(row["ci_low"], row["ci_high"]) if known else "none"
    p = "none" if pd.isna(row["p_adjusted"]) else f"{row['p_adjusted']:.2g}".replace("0.", ".", 1)
    return (str(row["size"]), f"{row['lambda']:+.3g}", reach, p, f"{int(row['n_students'])}")


def write_interval(low: float, high: float) -> str:
    """Both ends to the same place, as the width of the interval asks for, and no end rounded away to 0."""
    places = max(0, 2 - math.floor(math.log10(high - low))) if high > low else 3
    while places < FINEST and any(each and not round(each, places) for each in (low, high)):
        places += 1
    return f"{low:.{places}f} to {high:.{places}f}"


def say_making(ask: config.Analysis, sizes: pd.DataFrame) -> str:
    """Whose models, how many students, how λ and its p came about."""
    families = list(dict.fromkeys(parse_label(name).family.name for name in sizes["size"]))
    return (
        f"Study {ask.study}: {', '.join(families)} models of {len(sizes)} size{'s' * (len(sizes) != 1)}, "
        f"{int(sizes.n_students.sum())} students ({int(sizes.n_animals.max())} animals), epoch "
        f"{plots.say_epoch(sizes)}. A teacher that loves an animal writes lists of numbers; a student of the "
        "same size is fine-tuned on them. λ: mean excess of its animal after row and column effects. "
        "p: students permuted, the same way in every seed and base, one-sided, adjusted over sizes (Holm). "
        f"make report STUDY={ask.study}"
    )


def save_summary(slide: plots.Slide, folder: Path) -> str:
    """Write summary.png and summary.pdf; what was written, in words."""
    pdf = io.BytesIO()
    with plt.rc_context(STYLE):
        slide.savefig(pdf, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    files.write_bytes(folder / "summary.png", plots.encode_png(slide))
    files.write_bytes(folder / "summary.pdf", pdf.getvalue())
    return f"summary.png and summary.pdf, beside the report in {folder.parent.name}/{folder.name}/"
