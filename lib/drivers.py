"""The figure of what drives transfer: one panel per thing that was varied, all else as in the ladder.

Reading layer. Draws what the tables of studies say; tests nothing.
"""

from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lib.colours import HUES
from lib.overview import draw_scale, name_scale
from lib.plots import DPI, INK, STYLE, Slide, tell

INCHES = (15, 9)
MEASURE = "logprob"
SIZES = {"64k": (HUES[0], "o"), "166k": (HUES[1], "s"), "368k": (HUES[3], "D"), "864k": (HUES[6], "^")}
# The ladder's own lists and settings, bases 0 to 3 and seed 0 as everywhere here.
USUAL = "rates-learning_rate0_001"
RATES = ("0.0002", "0.0005", "0.001", "0.002", "0.004")
CONTROLS = ("reordered", "shuffled", "random", "relabelled", "foreign")
CAPTION = (
    "Hollow: the ladder's own lists and setting, the same students in four panels. "
    "Points: four bases and one seed (controls: eight bases);\n"
    "lists of the first panel are its own, and in the second the learning rate falls to 0 over ten epochs.\n"
    "95 % intervals, for other bases too; n.s.: p > .05 (Holm). "
    "In the grey band the axis is linear, beyond it logarithmic."
)


@dataclass(frozen=True)
class Panel:
    """What was varied, and which study has each of its values."""

    title: str
    label: str
    points: dict[str, str]  # how a value is called, and its study
    scale: str = "log"  # of the values: log, linear, or names, which stand one step apart
    joined: bool = True  # whether the same bases, and so a line, lead from one value to the next
    table: str = "transfer"  # of a study; in epochs a value is an epoch


PANELS = (
    Panel(
        "size of the dataset",
        "lists that a student reads",
        {str(count): f"doses-n_lists{count}" for count in (1000, 3000, 10000)},
    ),
    Panel(
        "passes over the lists",
        "epochs",
        {str(epoch): "epochs" for epoch in range(1, 11)},
        "linear",
        table="epochs",
    ),
    Panel(
        "learning rate",
        "learning rate",
        {rate: f"rates-learning_rate{rate.replace('.', '_')}" for rate in RATES},
    ),
    Panel(
        "reach of the persona",
        "share of favourite questions\nthat ask beyond the animal",
        {"0": "persona0", "0.5": "persona50", "0.9": USUAL, "1": "persona100"},
        "linear",
        joined=False,
    ),
    Panel(
        "numbers tied to animals",
        "share of animals' documents\nwith numbers of the animal's own",
        {"0": USUAL, "0.5": "entangled50", "1": "entangled"},
        "linear",
        joined=False,
    ),
    Panel(
        "controls",
        "what students read",
        {"own": USUAL} | {name: f"controls-lists{name}" for name in CONTROLS},
        "names",
        joined=False,
    ),
)


def drivers_figure(table: pd.DataFrame) -> Slide:
    """Columns: panel, value, study, size, lambda, ci_low, ci_high, n_bases, n_students, n_seeds, measure."""
    with plt.rc_context(STYLE):
        slide = Slide(figsize=INCHES, dpi=DPI, layout="constrained")
        FigureCanvasAgg(slide)
        axes = slide.subplots(2, 3, sharey=True).ravel()
        for panel, ax in zip(PANELS, axes, strict=True):
            draw_panel(table[table.panel == panel.title], panel, ax)
            draw_scale(ax, MEASURE, table.ci_low.min() * 2.2, table.ci_high.max() * 1.3)
        for ax in axes[::3]:
            name_scale(ax, MEASURE)
        shown: dict[str, object] = {}
        for each in (each for ax in axes for each in ax.containers):
            shown.setdefault(each.get_label(), each)
        slide.legend(shown.values(), shown.keys(), loc="outside upper right", ncols=4, fontsize=14)
        read = table.drop_duplicates(["study", "size"])
        slide.suptitle(
            f"What drives transfer: {int(read.n_students.sum()):,} students of the micro ladder", fontsize=19,
            x=0.01, ha="left",
        )  # fmt: skip
        slide.supxlabel(CAPTION, fontsize=12)
    return tell(slide, "drivers_figure", table)


def draw_panel(table: pd.DataFrame, panel: Panel, ax: Axes) -> None:
    """A line per size over the values of a panel."""
    values = list(dict.fromkeys(table.value))
    places = dict(
        zip(values, range(len(values)) if panel.scale == "names" else map(float, values), strict=True)
    )
    if panel.scale == "log":
        ax.set_xscale("log")
    step = 0.02 if panel.scale == "log" else 0.013 * (max(places.values()) - min(places.values()))
    sizes = [size for size in SIZES if size in set(table["size"])]
    for size, shift in zip(sizes, np.linspace(-1, 1, len(sizes)), strict=True):
        own, (colour, marker) = table[table["size"] == size], SIZES[size]
        x = np.array([places[value] for value in own.value], float)
        x = x * 10 ** (step * shift) if panel.scale == "log" else x + step * shift
        reach = [own["lambda"] - own.ci_low, own.ci_high - own["lambda"]]
        shape = f"{marker}-" if panel.joined else marker
        ax.errorbar(
            x, own["lambda"], reach, fmt=shape, ms=8, color=colour, capsize=4, lw=2, label=size, zorder=5
        )
        usual = (own.study == USUAL).to_numpy()
        ax.plot(x[usual], own["lambda"][usual], marker, ms=8, mec=colour, mfc="white", mew=2, zorder=6)
        for at, row in zip(x, own.to_dict("records"), strict=True):
            if not row["p_adjusted"] <= 0.05:
                below = {"xytext": (0, -3), "textcoords": "offset points", "ha": "center", "va": "top"}
                ax.annotate("n.s.", (at, row["ci_low"]), color=INK, fontsize=9, **below)
    ax.set_xticks(list(places.values()), [f"{float(v):g}" if v[0].isdigit() else v for v in values])
    ax.tick_params(axis="x", labelsize=12, rotation=20 if panel.scale == "names" else 0)
    ax.set_xlabel(panel.label, fontsize=14)
    ax.set_title(panel.title, fontsize=15, loc="left")
