"""The figure of a grid on its GPUs: who had which GPU when, and the bound that no schedule can undercut.

Reading layer. Draws a table of jobs with their times; knows nothing of how they were run.
"""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from lib.colours import HUES

STAGE_LOOKS = {"generate": HUES[1], "finetune": HUES[0], "evaluate": HUES[6]}


def grid_gantt(table: pd.DataFrame, ax: Axes) -> Axes:
    """One row per GPU, a bar per job, sizes where there is room; the dashed line is the bound.

    Columns: gpus, gpu, job, stage, size, start, end, bound, makespan (hours).
    """
    gpus, bound, end = int(table.gpus.iloc[0]), table.bound.iloc[0], table.end.max()
    for row in table.itertuples():
        colour, edge = STAGE_LOOKS.get(row.stage, "#999999"), 0.3 if gpus > 16 else 1
        ax.barh(row.gpu, row.end - row.start, 0.86, left=row.start, color=colour, edgecolor="white", lw=edge)
        if gpus <= 8 and row.end - row.start > 0.05 * end:
            ink = "black" if row.stage == "generate" else "white"
            middle = (row.start + row.end) / 2
            ax.text(middle, row.gpu, row.size, ha="center", va="center", color=ink, fontsize=9)
    ax.axvline(bound, color="black", ls="--", lw=1.5)
    ax.set_ylim(gpus - 0.5, -0.5)
    ax.set_xlim(0, 1.06 * max(end, bound))
    ax.set_yticks([0, gpus - 1] if gpus > 1 else [0], ["1", str(gpus)] if gpus > 1 else ["1"])
    ax.set(xlabel="hours", ylabel="GPU")
    span = table.makespan.iloc[0]
    title = f"{gpus} GPU{'s' * (gpus > 1)}: {span:.1f} h\n{span / bound - 1:+.1%} over the bound"
    ax.set_title(title, fontsize=13)
    shown = [stage for stage in STAGE_LOOKS if stage in set(table.stage)]
    ax.legend(handles=[Patch(color=STAGE_LOOKS[stage], label=stage) for stage in shown], ncols=3, fontsize=10,
              loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)  # fmt: skip
    ax.slide_title = "The whole grid in jobs that sleep, run by Snakemake: hours of the plan"  # type: ignore[attr-defined]
    return ax
