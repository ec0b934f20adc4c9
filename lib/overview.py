"""The one figure of all studies: transfer over parameters, from the smallest base to the largest model.

Reading layer. Draws what the tables of studies say; tests nothing and puts no two scales on one axis.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lib.captions import MEASURE_LABELS
from lib.colours import HUES
from lib.plots import DPI, FAINT, INK, STYLE, Slide, span, tell

INCHES = (14, 7)
# Study, how it is called, which measure it has, its colour and its marker.
FAMILIES = (
    ("ladder", "micro ladder, bases of our own", "logprob", HUES[0], "o"),
    ("smollm2", "SmolLM2-135M-Instruct", "logprob", HUES[6], "s"),
    ("published", "Qwen 2.5 Instruct, published runs", "rate", HUES[3], "D"),
)
CAPTION = (
    "Bars: 95 % intervals, for other bases too where a size has several, else for other animals and seeds. "
    "* p < .05 (Holm)\nfor the bases that were tried. 0.02 nats: an animal is 2 % likelier. "
    "In the grey bands axes are linear, beyond them logarithmic."
)
# Of each measure: up to where its axis is linear, and its ticks.
AXES = {
    "logprob": (0.002, (-0.01, -0.005, -0.002, 0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)),
    "rate": (2.0, (-2, 0, 2, 5, 10, 20, 50)),
}


def overview_figure(table: pd.DataFrame) -> Slide:
    """One panel per measure, sizes of each family with their interval, single bases as small points.

    Columns: study, level (size or base), size, params, lambda, ci_low, ci_high, p_adjusted, measure,
    n_students, n_bases.
    """
    measures = list(dict.fromkeys(table.measure))
    widths = [max(2.0, np.log10(each.params.max() / each.params.min())) for _, each in
              table.groupby("measure", sort=False)]  # fmt: skip
    with plt.rc_context(STYLE):
        slide = Slide(figsize=INCHES, dpi=DPI, layout="constrained")
        FigureCanvasAgg(slide)
        axes = slide.subplots(1, len(measures), squeeze=False, width_ratios=widths).ravel()
        for measure, ax in zip(measures, axes, strict=True):
            draw_measure(table[table.measure == measure], ax)
        total = int(table[table.level == "size"].n_students.sum())
        slide.suptitle(f"Does a student take over what its teacher loves? {total:,} students", fontsize=19)
        slide.supxlabel(f"model size (parameters, log scale)\n{CAPTION}", fontsize=13)
    return tell(slide, "overview_figure", table)


def draw_scale(ax: Axes, measure: str, low: float, high: float) -> None:
    """An axis of transfer factors that is linear around 0, where it is grey, and logarithmic beyond."""
    near, ticks = AXES[measure]
    ax.axhspan(-near, near, color="#f2f2f2", lw=0, zorder=0)
    ax.axhline(0, color=FAINT, lw=1.2, zorder=1)
    ax.set_yscale("symlog", linthresh=near, linscale=0.8)
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_ylim(min(low, -near / 3), high)
    ax.minorticks_off()


def name_scale(ax: Axes, measure: str) -> None:
    ax.set_ylabel(f"transfer factor λ\n({MEASURE_LABELS[measure]})")


def draw_measure(table: pd.DataFrame, ax: Axes) -> None:
    """The families that have one measure."""
    measure = table.measure.iloc[0]
    ax.set_xscale("log")
    for study, title, _, colour, marker in FAMILIES:
        own = table[table.study == study]
        if not own.empty:
            draw_family(own, ax, title, colour, marker)
    sizes = table[table.level == "size"].sort_values("params")
    ax.set_xticks(sizes.params, list(sizes["size"]))
    ax.margins(x=0.07)
    lowest = min(sizes.ci_low.min(), table["lambda"].min())
    draw_scale(ax, measure, lowest * 1.2, 3 * sizes.ci_high.max())  # with room for the legend
    name_scale(ax, measure)
    ax.legend(loc="upper left", fontsize=11, handletextpad=0.6, borderaxespad=0.1)


def draw_family(own: pd.DataFrame, ax: Axes, title: str, colour: str, marker: str) -> None:
    """Means with their intervals and how sure they are above 0; bases beside them."""
    sizes, bases = own[own.level == "size"].sort_values("params"), own[own.level == "base"]
    reach = [sizes["lambda"] - sizes.ci_low, sizes.ci_high - sizes["lambda"]]
    counts = f"{span(sizes.n_students.astype(int))} students" + " a size" * (len(sizes) > 1)
    if (sizes.n_bases > 1).any():
        counts = f"{span(sizes.n_bases.astype(int))} bases, {counts}"
    ax.errorbar(
        sizes.params, sizes["lambda"], reach, fmt=marker, ms=10, color=colour, capsize=5, lw=2.2, zorder=5,
        label=f"{title}: {counts}",
    )  # fmt: skip
    for row in sizes.to_dict("records"):
        stars = "*" if row["p_adjusted"] <= 0.05 else "n.s."
        top = max(row["ci_high"], *bases["lambda"][bases["size"] == row["size"]], row["lambda"])
        ax.annotate(stars, (row["params"], top), (0, 5), textcoords="offset points", ha="center",
                    color=INK, fontsize=16 if stars == "*" else 11)  # fmt: skip
    for (_, params), some in bases.groupby(["size", "params"]):
        if len(some) < 2:
            continue
        shift = np.linspace(-1, 1, len(some)) * 0.09
        ax.scatter(params * 10**shift, some.sort_values("base")["lambda"], s=26, facecolor="white",
                   edgecolor=colour, lw=1.3, zorder=6)  # fmt: skip
    if len(bases) > len(sizes):
        ax.scatter([], [], s=26, facecolor="white", edgecolor=colour, lw=1.3, label="each base by itself")
