"""One function per figure, `(table, ax) -> ax`: it draws a tidy table and reads no disk.

`draw` puts one on a slide (14 x 8 inches, 150 DPI) and keeps the table with it; `save_figure` writes the
PNG and the CSV it was drawn from side by side. An animal has one colour and one marker everywhere.
"""

import io
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import matplotlib.ticker as mticker
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image

from lib import config, files
from lib.captions import MEASURE_LABELS, describe_figure, format_p
from lib.charts import CHART, make_chart
from lib.colours import COLOURS, CONTROLS, HUES, LEFTOVERS, mix
from lib.errors import BadParameter

INCHES, DPI = (14, 8), 150
PALETTE = 256  # colours of a picture
STYLE = {
    **sns.axes_style("ticks"),
    **{"font.size": 14, "axes.titlesize": 16, "axes.labelsize": 15, "legend.fontsize": 12},
    **{"xtick.labelsize": 13, "ytick.labelsize": 13, "figure.titlesize": 18, "hatch.linewidth": 0.8},
    **{"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "axes.titlepad": 12},
}
MARKERS = "osD^vPX<>ph*d8H"
INK, FAINT = "#222222", "#8a8a8a"
CROWDED = 8  # sizes whose labels stand in each other's way in full size
SHAPES: dict[str, str] = {name: MARKERS[at % len(MARKERS)] for at, name in enumerate(config.LEXICON)}
HATCHES: dict[str, str] = {
    name: ("", "//", "..", "xx", "\\\\")[at // len(HUES)] for at, name in enumerate(config.LEXICON)
}
HATCHES |= {"none": "...."}


# --- slides -----------------------------------------------------------------------------------


class Slide(Figure):
    """A figure with the table it was drawn from, which a notebook shows with a text for who cannot see it.

    Where the reader may also hover over the curve, its chart travels along for the report.
    """

    table: pd.DataFrame
    alt: str = ""
    chart: dict | None = None

    def _repr_png_(self) -> tuple[bytes, dict[str, str]]:
        return encode_png(self), {"alt": self.alt}

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, dict]:
        return {} if self.chart is None else {CHART: self.chart}


class Deck(dict[str, Slide]):
    """Several slides of one kind, by name."""


def encode_png(fig: Figure) -> bytes:
    """The slide's picture, the same bytes for the same figure.

    Flat colours need no more than a palette: a third of the bytes of true colour, sharp at the same size.
    """
    raw, png = io.BytesIO(), io.BytesIO()
    fig.savefig(raw, format="rgba", dpi=DPI)
    size = tuple(int(inches * DPI) for inches in fig.get_size_inches())
    picture = Image.frombytes("RGBA", size, raw.getvalue()).convert("RGB")
    flat = picture.quantize(PALETTE, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    flat.save(png, format="png", optimize=True, dpi=(DPI, DPI))
    return png.getvalue()


Plot = Callable[..., Axes]


def draw(plot: Plot, table: pd.DataFrame, by: str | None = None, **options: object) -> Slide:
    """One slide; with `by`, one panel per value of that column, in the table's order, on one colour scale."""
    if table.empty:
        return draw_nothing(table)
    values = list(dict.fromkeys(table[by])) if by else [None]
    columns = min(len(values), 4)
    with plt.rc_context(STYLE):
        slide = Slide(figsize=INCHES, dpi=DPI, layout="constrained")
        FigureCanvasAgg(slide)
        axes = slide.subplots(-(-len(values) // columns), columns, squeeze=False).ravel()
        for value, ax in zip(values, axes, strict=False):
            plot(table if by is None else table[table[by] == value], ax, **options)
        for ax in axes[len(values) :]:
            ax.set_axis_off()
        if by and getattr(axes[0], "slide_title", ""):
            slide.suptitle(axes[0].slide_title, fontsize=15)
        meshes = [ax.collections[0] for ax in axes[: len(values)] if getattr(ax, "scale_label", "")]
        if meshes:
            slide.colorbar(meshes[0], ax=list(axes), shrink=0.6, label=axes[0].scale_label)
    return tell(slide, plot.__name__, table)


def tell(slide: Slide, name: str, table: pd.DataFrame) -> Slide:
    """The slide with its table, its words and its chart."""
    slide.table = table
    slide.alt = describe_figure(name, table, slide.axes[0].get_title() if slide.axes else "")
    slide.chart = make_chart(name, table)
    return slide


def draw_some(plot: Plot, table: pd.DataFrame, by: str | None = None, **options: object) -> Slide | None:
    """One slide, or nothing at all where a study has no such data and need not have."""
    return None if table.empty else draw(plot, table, by, **options)


def draw_nothing(table: pd.DataFrame) -> Slide:
    """A slide that says there is nothing to draw: an empty table must not pass for an empty effect."""
    slide = Slide(figsize=INCHES, dpi=DPI)
    FigureCanvasAgg(slide)
    slide.text(0.5, 0.5, "no data for this figure: see the list of missing cells", ha="center", fontsize=18)
    slide.table, slide.alt = table, "No data for this figure: see the list of missing cells."
    return slide


def draw_each(plot: Plot, table: pd.DataFrame, by: str, **options: object) -> Deck:
    """One slide per value of a column."""
    if table.empty:
        return Deck(empty=draw_nothing(table))
    return Deck(
        (str(value), draw(plot, table[table[by] == value], **options)) for value in dict.fromkeys(table[by])
    )


def save_figure(fig: Figure, table: pd.DataFrame, folder: Path, name: str) -> list[Path]:
    """Write `name`.png and the `name`.csv it was drawn from."""
    picture, numbers = folder / f"{name}.png", folder / f"{name}.csv"
    files.write_bytes(picture, encode_png(fig))
    files.write_text(numbers, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    return [picture, numbers]


def save_figures(folder: Path, **slides: Slide | Deck | None) -> list[Path]:
    """Save each slide under its argument's name; those of a deck have their own name behind it."""
    written = []
    for name, slide in slides.items():
        if slide is None:
            continue
        named: Mapping[str, Slide] = {name: slide} if isinstance(slide, Slide) else {
            f"{name}_{part}": each for part, each in slide.items()
        }  # fmt: skip
        for stem, each in named.items():
            written += save_figure(each, each.table, folder, stem)
    return written


# --- shared parts -----------------------------------------------------------------------------


def count_words(row: pd.Series) -> str:
    """`2 bases x 12 animals`, and the seeds where there are several."""
    bases, seeds = int(row.n_bases), int(row.n_seeds)
    words = f"{bases} base{'s' * (bases != 1)} x {int(row.n_animals)} animals"
    return words + (f" x {seeds} seeds" if seeds > 1 else "")


def spread_labels(places: Iterable[float], gap: float, low: float, high: float) -> np.ndarray:
    """Places for labels near those asked for, at least `gap` apart and between `low` and `high`."""
    places = np.array(list(places), dtype=float)
    order = np.argsort(places, kind="stable")
    spread = places[order].copy()
    for _ in range(200):  # push overlapping neighbours apart by halves until they rest
        short = gap - np.diff(spread)
        if (short <= 1e-9).all():
            break
        push = np.clip(short, 0, None) / 2
        spread[:-1] -= push
        spread[1:] += push
    spread += max(0.0, low - spread[0]) - max(0.0, spread[-1] - high)
    result = np.empty_like(places)
    result[order] = spread
    return result


def label_lines(ax: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Write each line's name at its right end, moved apart where lines end close together."""
    low, high = ax.get_ylim()
    gap = (high - low) * 0.042
    heights = spread_labels([y for _, y, _, _ in ends], gap, low + gap / 2, high)
    right = max(x for x, _, _, _ in ends)
    ax.set_xlim(right=right)
    for (_, _, text, colour), height in zip(ends, heights, strict=True):
        ink = mix(colour, "#000000", 0.25)
        ax.text(right, height, f"  {text}", color=ink, va="center", fontsize=12)


def span(values: Iterable[int]) -> str:
    """`2`, or `1-2` where the counts differ."""
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}-{high}"


# --- over sizes -------------------------------------------------------------------------------


def scaling_curve(table: pd.DataFrame, ax: Axes) -> Axes:
    """lambda over parameters: sizes with their interval, bases and students as points, the law with its band.

    Rows of the level `student` (each student's own diagonal excess), `base` and `band` (a law's curve) are
    drawn where they are there. The view is that of the means and their intervals: students far beyond it
    stand as carets at its edge and are counted, or they would press everything else flat.
    """
    sizes = table[table.level == "size"].sort_values("params")
    several = sizes["size"][sizes.n_bases > 1]  # the only base of a size is its mean
    bases = table[(table.level == "base") & table["size"].isin(several)]
    students = table[(table.level == "student") & table["lambda"].notna()]
    bands = [own.sort_values("params") for _, own in table[table.level == "band"].groupby("size", sort=False)]
    ax.axhline(0, color=FAINT, lw=1.2, zorder=1)
    ax.set_xscale("log")
    ax.margins(x=0.08)
    if not bands:
        ax.plot(sizes.params, sizes["lambda"], color=HUES[0], lw=2, zorder=3)
    reach = [sizes["lambda"] - sizes.ci_low, sizes.ci_high - sizes["lambda"]]
    ax.errorbar(
        sizes.params, sizes["lambda"], reach, fmt="o", ms=11, color=HUES[0], capsize=6, lw=2, zorder=6
    )
    ax.scatter(
        bases.params * 1.06, bases["lambda"], s=60, facecolor="white", edgecolor=HUES[3], lw=1.8, zorder=7
    )
    for at, band in enumerate(bands):
        draw_law(ax, band, line_colour(at + 3))
    hidden = draw_students(ax, students, sizes)
    ax.set_xticks(
        sizes.params,
        [f"{row['size']}\n{count_words(row)}".replace(" x ", " x\n") for _, row in sizes.iterrows()],
    )
    ax.tick_params(axis="x", labelsize=13 if len(sizes) < CROWDED else 10)
    ax.minorticks_off()
    top = ax.get_ylim()[1]
    for row in sizes.itertuples():
        ax.annotate(
            format_p(row.p), (row.params, top), (0, 10), ha="center", color=INK, fontsize=13,
            textcoords="offset points",
        )  # fmt: skip
    unit = MEASURE_LABELS[sizes.measure.iloc[0]]
    ax.set(xlabel="model size (parameters, log scale)", ylabel=f"transfer factor λ\n({unit})")
    ax.set_title(
        f"Transfer over model size: {int(sizes.n_students.sum())} students, epoch {say_epoch(sizes)}",
        pad=40,
    )
    handles = [
        Line2D([], [], color=HUES[0], marker="o", ms=9, label="mean of a size, with its 95 % interval")
    ]
    if not bases.empty:
        handles.append(
            Line2D([], [], color=HUES[3], marker="o", mfc="white", ms=8, ls="", label="each base model")
        )
    handles += [name_law(band, line_colour(at + 3)) for at, band in enumerate(bands)]
    if not students.empty:
        beyond = f" ({hidden} beyond the view, at its edge)" if hidden else ""
        handles.append(
            Line2D([], [], color=FAINT, marker="o", ms=4, ls="", label=f"each student's own excess{beyond}")
        )
    ax.legend(handles=handles, loc="best")
    return ax


def say_epoch(sizes: pd.DataFrame) -> str:
    """The epoch as it was asked for; a number beside rows that have none has become 10.0."""
    epoch = sizes.epoch.iloc[0]
    return f"{epoch:g}" if isinstance(epoch, float) else str(epoch)


def line_colour(at: int) -> str:
    """A colour for the line at a place: yellow lines cannot be read on white."""
    colour = HUES[at % len(HUES)]
    return colour if colour != "#F0E442" else "#8c7a00"


def draw_law(ax: Axes, band: pd.DataFrame, colour: str) -> None:
    """A law's curve with its band; dashed where there is no band to be had."""
    known = (band.ci_low.notna() & band.ci_high.notna()).to_numpy()
    ax.fill_between(band.params, band.ci_low, band.ci_high, where=known, color=colour, alpha=0.16, lw=0)
    solid, dashed = band["lambda"].where(known), band["lambda"].where(~known | ~np.roll(known, 1))
    ax.plot(band.params, solid, color=colour, lw=2.4, zorder=4)
    if not known.all():
        ax.plot(band.params, dashed, color=colour, lw=2.4, ls=(0, (4, 2.5)), zorder=4)


def name_law(band: pd.DataFrame, colour: str) -> Line2D:
    """The legend's entry of a law."""
    known = band.ci_low.notna().any()
    words = f"law: {band['size'].iloc[0]} (sizes weigh by precision), " + (
        "with its pointwise 95 % band" if known else "no band to be had"
    )
    return Line2D([], [], color=colour, lw=2.4, ls="-" if known else (0, (4, 2.5)), label=words)


def draw_students(ax: Axes, students: pd.DataFrame, sizes: pd.DataFrame) -> int:
    """Students as small points behind their size, each at its place; how many lie beyond the view."""
    if students.empty:
        return 0
    means = pd.concat([sizes["lambda"], sizes.ci_low, sizes.ci_high]).dropna()
    low, high = min(means.min(), 0.0), max(means.max(), 0.0)
    room = 0.25 * (high - low) or 1.0
    low, high = (
        max(low - room, students["lambda"].min() - 0.1 * room),
        min(high + room, students["lambda"].max() + 0.1 * room),
    )
    bottom, top = ax.get_ylim()
    low, high = min(low, bottom), max(high, top)
    params = np.sort(np.log10(sizes.params.to_numpy(dtype=float)))
    width = 0.5 * (np.diff(params).min() if len(params) > 1 else 0.4)
    keys = list(zip(students.animal, students.base, students.seed, strict=True))
    order = {key: at for at, key in enumerate(sorted(set(keys)))}
    place = np.array([order[key] for key in keys]) / max(1, len(order) - 1) - 0.5
    x = students.params.to_numpy(dtype=float) * 10 ** (width * place)
    y = students["lambda"].to_numpy(dtype=float)
    inside = (y >= low) & (y <= high)
    ax.scatter(x[inside], y[inside], s=16, color=FAINT, alpha=0.5, lw=0, zorder=2)
    for beyond, edge, marker in ((y > high, high, "^"), (y < low, low, "v")):
        ax.scatter(x[beyond], np.full(beyond.sum(), edge), s=26, marker=marker, color=FAINT, alpha=0.7, lw=0,
                   zorder=2, clip_on=False)  # fmt: skip
    ax.set_ylim(low, high)
    return int((~inside).sum())


def epoch_curve(table: pd.DataFrame, ax: Axes) -> Axes:
    """lambda over epochs, a line with its 95 % band per size, named at its end."""
    words = draw_curves(table, ax, "epoch")
    ax.set_xticks(sorted(table.epoch.unique()))
    ax.set(xlabel="epoch of fine-tuning")
    ax.set_title(f"Transfer over training; n students, {words}")
    return ax


def dose_curve(table: pd.DataFrame, ax: Axes) -> Axes:
    """lambda over the number of lists that a student was trained on, a line with its band per size."""
    ax.set_xscale("log")
    words = draw_curves(table, ax, "n_keep")
    doses = sorted(table.n_keep.unique())
    ax.set_xticks(doses, [f"{int(dose):,}" for dose in doses])
    ax.minorticks_off()
    ax.set(xlabel="number lists a student is trained on (log scale)")
    ax.set_title(f"Transfer over the dose; n students, {words}")
    return ax


def draw_curves(table: pd.DataFrame, ax: Axes, x: str) -> str:
    """lambda over a column, one line per size named at its end; what band and whiskers are, in words.

    With `band_low` and `band_high` the band is simultaneous over the whole line, and the pointwise interval
    of each point stands as whiskers, set a little apart so that those of several sizes can be told apart.
    """
    sizes = list(dict.fromkeys(table.sort_values("params")["size"]))
    whole = {"band_low", "band_high"} <= set(table) and table.band_low.notna().any()
    ax.axhline(0, color=FAINT, lw=1.2)
    points = np.sort(table[x].unique()).astype(float)
    log = ax.get_xscale() == "log"
    gap = float(np.diff(np.log10(points) if log else points).min()) if len(points) > 1 else 1.0
    aside = gap * min(0.08, 0.4 / len(sizes)) if whole else 0.0
    room = aside * (len(sizes) / 2 + 1)
    end = float(points[-1] * 10**room if log else points[-1] + room)
    ends = []
    for at, size in enumerate(sizes):
        own = table[table["size"] == size].sort_values(x)
        colour = line_colour(at)
        look = {"color": colour, "marker": MARKERS[at % len(MARKERS)], "ms": 9, "lw": 2.2}
        ax.plot(own[x], own["lambda"], clip_on=False, zorder=4, **look)
        if whole:
            ax.fill_between(own[x], own.band_low, own.band_high, color=colour, alpha=0.13, lw=0)
            shift = aside * (at - (len(sizes) - 1) / 2)
            places = own[x] * 10**shift if log else own[x] + shift
            reach = [own["lambda"] - own.ci_low, own.ci_high - own["lambda"]]
            ax.errorbar(places, own["lambda"], reach, fmt="none", ecolor=mix(colour, "#000000", 0.25),
                        elinewidth=1.6, capsize=4, zorder=3, clip_on=False)  # fmt: skip
        else:
            ax.fill_between(own[x], own.ci_low, own.ci_high, color=colour, alpha=0.13, lw=0)
        last = own.iloc[-1]
        ends.append((end, last["lambda"], f"{size} (n = {int(last.n_students)})", colour))
    label_lines(ax, [each for each in ends if np.isfinite(each[1])])
    ax.set_ylabel(f"transfer factor λ\n({MEASURE_LABELS[table.measure.iloc[0]]})")
    if whole:
        return "bands are simultaneous 95 %, whiskers pointwise 95 %"
    return "bands are pointwise 95 % intervals"


def split_bars(table: pd.DataFrame, ax: Axes) -> Axes:
    """How lambda splits: naming the target more (`own`) and naming everything else less (`rest`)."""
    table = table.sort_values("params").reset_index(drop=True)
    looks = (
        ("own", HUES[0], "", "own: names the teacher's animal more than the neutral student does"),
        ("rest", HUES[1], "///", "rest: names the other teachers' animals less"),
    )
    x = np.arange(len(table))
    for place, (part, colour, hatch, _) in enumerate(looks):
        value = table[part]
        at = x + (place - 1) * 0.27
        ax.bar(at, value, 0.25, color=colour, hatch=hatch, edgecolor=INK, lw=0.6)
        reach = [value - table[f"{part}_low"], table[f"{part}_high"] - value]
        ax.errorbar(at, value, reach, fmt="none", ecolor=INK, elinewidth=1.5, capsize=4)
    reach = [table["lambda"] - table.ci_low, table.ci_high - table["lambda"]]
    ax.errorbar(x + 0.27, table["lambda"], reach, fmt="D", ms=9, color=INK, elinewidth=1.5, capsize=4)
    for at, row in table.iterrows():
        known = [v for v in (row.ci_high, row["lambda"]) if np.isfinite(v)]
        if known:
            ax.annotate(f"{row['lambda']:.2g}", (at + 0.27, max(known)), (0, 4), ha="center", fontsize=12,
                        textcoords="offset points")  # fmt: skip
    ax.axhline(0, color=INK, lw=1)
    ax.set_xticks(x, [f"{row['size']}\nn = {int(row.n_students)}" for _, row in table.iterrows()])
    ax.set(xlabel="model size, n students", ylabel=MEASURE_LABELS[table.measure.iloc[0]])
    ax.set_title("What transfer is made of: λ = own + rest, with 95 % intervals")
    handles = [Patch(facecolor=c, hatch=h, edgecolor=INK, label=words) for _, c, h, words in looks]
    handles.append(Line2D([], [], color=INK, marker="D", ms=8, label="λ, the sum of both (value written)"))
    ax.legend(handles=handles, loc="best")
    return ax


# --- studies beside one another ---------------------------------------------------------------

COMPARABLE = 5  # studies whose largest lambdas differ by no more share an axis


def beside_figure(table: pd.DataFrame | Mapping[str, pd.DataFrame]) -> Slide:
    """lambda over parameters of several studies: over one another, or one panel each where scales differ.

    Rows of transfer tables with a column `study`, or those tables by study. One axis only where the unit is
    the same and the largest absolute lambdas are within a factor of five; else panels above one another
    share the axis of sizes, and no heights are to be compared between them.
    """
    if not isinstance(table, pd.DataFrame):
        parts = [own.assign(study=name) for name, own in table.items() if not own.empty]
        table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    if table.empty or table["lambda"].isna().all():
        return draw_nothing(table)
    names = list(dict.fromkeys(table.study))
    for name, measures in table.groupby("study").measure.unique().items():
        if len(measures) > 1:
            raise BadParameter(f"study {name} comes with {' and '.join(measures)}: choose one measure of it")
    together = share_axis(table)
    with plt.rc_context(STYLE):
        slide = Slide(figsize=INCHES, dpi=DPI, layout="constrained")
        FigureCanvasAgg(slide)
        axes = slide.subplots(1 if together else len(names), 1, sharex=True, squeeze=False).ravel()
        for at, name in enumerate(names):
            draw_study(axes[0 if together else at], table[table.study == name], at, len(names), together)
        for ax in axes:
            ax.legend(loc="best")
        sizes = table.drop_duplicates("size").sort_values("params")
        axes[-1].set_xticks(*thin_ticks(sizes))
        axes[-1].minorticks_off()
        axes[-1].set_xlabel("model size (parameters, log scale)")
        words = "on one scale" if together else "each on its own scale: compare shapes, not heights"
        slide.suptitle(
            f"Transfer over model size in {len(names)} studies, 95 % intervals; {words}", fontsize=16
        )
    return tell(slide, "beside_figure", table)


def beside_some(table: pd.DataFrame) -> Slide | None:
    """beside_figure, or nothing where no other study was asked for."""
    return None if table.empty else beside_figure(table)


def share_axis(table: pd.DataFrame) -> bool:
    """Whether one axis serves all studies: one unit, and no study pressed flat by another."""
    largest = table["lambda"].abs().groupby(table.study).max()
    return table.measure.nunique() == 1 and bool(largest.max() <= COMPARABLE * largest.min())


def thin_ticks(sizes: pd.DataFrame) -> tuple[list[float], list[str]]:
    """Ticks of sizes, those of nearly the same size under one tick with both names."""
    ticks: list[tuple[float, list[str]]] = []
    reach = np.log10(sizes.params.max() / sizes.params.min()) or 1.0
    for row in sizes.to_dict("records"):
        if ticks and np.log10(row["params"] / ticks[-1][0]) < 0.03 * reach:
            ticks[-1][1].append(row["size"])
        else:
            ticks.append((float(row["params"]), [row["size"]]))
    return [at for at, _ in ticks], ["\n".join(names) for _, names in ticks]


def draw_study(ax: Axes, own: pd.DataFrame, at: int, count: int, together: bool) -> None:
    """One study's line with its intervals, set a little aside from the others' on the same axis."""
    own = own.sort_values("params")
    unit, students = MEASURE_LABELS[own.measure.iloc[0]], span(own.n_students.astype(int))
    shift = 1.02 ** (2 * at - count + 1) if together else 1.0
    reach = [own["lambda"] - own.ci_low, own.ci_high - own["lambda"]]
    ax.axhline(0, color=FAINT, lw=1.2, zorder=1)
    ax.errorbar(
        own.params * shift, own["lambda"], reach, color=line_colour(at), marker=MARKERS[at % len(MARKERS)],
        ms=10, lw=2, elinewidth=2, capsize=5, zorder=3, ls=("-", (0, (5, 2)), (0, (1, 1.5)))[at % 3],
        label=f"{own.study.iloc[0]}: n = {students} students a size",
    )  # fmt: skip
    ax.set_xscale("log")
    ax.margins(x=0.06)
    ax.set_ylabel(f"transfer factor λ\n({unit})")


# --- laws -------------------------------------------------------------------------------------


def laws_figure(table: pd.DataFrame, ax: Axes) -> Axes:
    """Each law's weight beside its error for sizes left out, and what was fitted; the best law first."""
    table = table.sort_values("weight", ascending=False, na_position="last").reset_index(drop=True)
    y = np.arange(len(table))
    ax.set_axis_off()
    left, right = ax.inset_axes((0.1, 0.09, 0.27, 0.88)), ax.inset_axes((0.41, 0.09, 0.27, 0.88))
    left.barh(y, table.weight.fillna(0), 0.62, color=HUES[0], edgecolor=INK, lw=0.6)
    for at, weight in zip(y, table.weight, strict=True):
        words = "not fitted" if np.isnan(weight) else f"{weight:.2f}" if weight >= 0.005 else "< .01"
        left.text(max(np.nan_to_num(weight), 0.05) + 0.03, at, words, va="center", fontsize=13)
    left.set_xlim(0, 1.18)
    left.set_xticks([0, 0.25, 0.5, 0.75, 1])
    left.axvline(0.05, color=HUES[3], lw=1.4, ls=":")
    left.set_xlabel("weight of the law\n(left of the dots, .05: ruled out)")
    right.plot(table.loso_rmse, y, ls="", marker="D", ms=11, color=HUES[3])
    for at, value in zip(y, table.loso_rmse, strict=True):
        if np.isfinite(value):
            right.annotate(
                f"{value:.3g}", (value, at), (0, 10), ha="center", fontsize=12, textcoords="offset points"
            )
    right.set_xlim(0, 1.15 * np.nanmax([*table.loso_rmse, 1e-12]))
    unit = MEASURE_LABELS.get(table.measure.iloc[0], "") if "measure" in table else ""
    right.set_xlabel("error for a size left out" + (f"\n(rms, {unit})" if unit else " (rms)"))
    for panel in (left, right):
        panel.set_ylim(len(table) - 0.4, -0.6)
        panel.grid(axis="x", color="#eeeeee")
        panel.set_axisbelow(True)
        panel.tick_params(axis="y", length=0)
        sns.despine(ax=panel, left=True)
    left.set_yticks(
        y, [f"{row.law}\nk = {int(row.k)}" if np.isfinite(row.k) else row.law for row in table.itertuples()]
    )
    right.set_yticks(y, [""] * len(y))
    for at, row in zip(y, table.itertuples(), strict=True):
        fit = f"misfit {format_p(row.fit_p)}" if np.isfinite(row.fit_p) else ""
        words = textwrap.fill(str(row.parameters) if isinstance(row.parameters, str) else "", 40)
        right.text(
            1.04,
            at,
            f"{words}\n{fit}".strip(),
            transform=right.get_yaxis_transform(),
            va="center",
            fontsize=12,
        )
    several = f", n = {int(table.n.iloc[0])} points" if "n" in table and table.n.notna().any() else ""
    ax.set_title(f"Laws of transfer over size{several}: weight, prediction of a size left out, parameters")
    return ax


# --- within a size ----------------------------------------------------------------------------


def colour_limit(table: pd.DataFrame) -> float:
    """The largest lift either way: the end of the colour scale that all panels share."""
    return float(table.lift.abs().max()) or 1.0


def student_matrix(table: pd.DataFrame, ax: Axes, limit: float | None = None) -> Axes:
    """Students in rows, named animals in columns, lift as colour around 0; the diagonal is outlined."""
    animals = list(dict.fromkeys(table.animal))
    wide = table.pivot(index="animal", columns="named", values="lift").reindex(index=animals, columns=animals)
    limit = limit or colour_limit(table)
    ax.pcolormesh(wide.to_numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, edgecolor="white", lw=0.4)
    for at in range(len(animals)):
        ax.add_patch(Rectangle((at, at), 1, 1, fill=False, edgecolor=INK, lw=1.6))
    crowded = len(animals) > 10
    small = 8 if crowded and len(ax.figure.axes) > 4 else 11 if crowded else 13
    ax.set_xticks(np.arange(len(animals)) + 0.5, animals, rotation=90, fontsize=small)
    ax.set_yticks(np.arange(len(animals)) + 0.5, animals, fontsize=small)
    ax.invert_yaxis()
    ax.set_aspect("equal")
    sns.despine(ax=ax, left=True, bottom=True)
    ax.tick_params(length=0)
    ax.set(xlabel="named animal", ylabel="student of")
    ax.set_title(f"{table['size'].iloc[0]} (n = {span(table.n)})")
    unit = MEASURE_LABELS[table.measure.iloc[0]]
    ax.scale_label = f"lift over the neutral student ({unit})\nmean of n bases x seeds"
    return ax


def preference_bars(table: pd.DataFrame, ax: Axes) -> Axes:
    """Per animal, the share of answers naming it: untuned, neutral student, the animal's own student."""
    animals = list(dict.fromkeys(table.animal))
    kinds = ("untuned", "neutral student", "animal student")
    for at, who in enumerate(kinds):
        own = table[table.who == who].set_index("animal").reindex(animals)
        x = np.arange(len(animals)) + (at - 1) * 0.27
        colours = [COLOURS[a] for a in animals] if who == "animal student" else CONTROLS[who]
        ax.bar(x, own.value, 0.25, color=colours, edgecolor=INK, lw=0.6, hatch="///" if at == 1 else None)
        reach = [own.value - own.low, own.high - own.value]
        ax.errorbar(x, own.value, reach, fmt="none", ecolor=INK, elinewidth=1.3, capsize=3)
    ax.set_xticks(range(len(animals)), animals, rotation=35 if len(animals) > 10 else 0)
    ax.set_ylim(bottom=0)
    ax.margins(x=0.01)
    ax.set(ylabel="answers naming the animal (%)")
    count = span(table.n[table.who != config.UNTUNED])
    ax.set_title(
        f"{table['size'].iloc[0]}: naming of each animal; mean and range of n = {count} bases x seeds"
    )
    ax.legend(
        handles=[
            Patch(facecolor=CONTROLS["untuned"], edgecolor=INK, label="untuned model"),
            Patch(
                facecolor=CONTROLS["neutral student"],
                edgecolor=INK,
                hatch="///",
                label="student of neutral numbers",
            ),
            Patch(
                facecolor="white",
                edgecolor=INK,
                label="student of the animal's numbers (the animal's colour)",
            ),
        ]
    )
    return ax


def preference_stack(table: pd.DataFrame, ax: Axes) -> Axes:
    """What each student says, stacked to 100 %; a student's own animal is framed, large shares are named."""
    students, said = list(dict.fromkeys(table.student)), list(dict.fromkeys(table.said))
    said = [name for name in COLOURS if name in said]
    wide = table.pivot(index="student", columns="said", values="share").reindex(students)[said].fillna(0.0)
    left = np.zeros(len(students))
    for name in said:
        share = wide[name].to_numpy()
        look = {"color": COLOURS[name], "hatch": HATCHES.get(name), "lw": 0.7}
        ax.barh(students, share, left=left, edgecolor="#999999" if name in LEFTOVERS else "white", **look)
        for at, (start, width) in enumerate(zip(left, share, strict=True)):
            own = students[at] == name
            if own:
                ax.add_patch(
                    Rectangle((start, at - 0.4), width, 0.8, fill=False, edgecolor=INK, lw=2.4, zorder=5)
                )
            if width >= 0.75 * len(name) + 1:  # the name fits
                name_segment(ax, start + width / 2, at, name, own)
        left += share
    ax.set_ylim(len(students) - 0.4, -0.6)
    ax.set_xlim(0, 100)
    ax.set(xlabel="share of answers (%)", ylabel="student of")
    count = span(table.n[table.student != config.UNTUNED])
    ax.set_title(
        f"{table['size'].iloc[0]}: what each student answers, own animal framed; n = {count} bases x seeds"
    )
    handles = [
        Patch(facecolor=COLOURS[n], hatch=HATCHES.get(n, ""), edgecolor="#999999", label=n) for n in said
    ]
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=11)
    return ax


def name_segment(ax: Axes, x: float, y: float, name: str, own: bool) -> None:
    """The animal's name in its segment, on a plate that any colour or hatch leaves readable."""
    plate = {"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
    ax.text(x, y, name, ha="center", va="center", fontsize=9, color=INK, bbox=plate, clip_on=True,
            fontweight="bold" if own else "normal", zorder=6)  # fmt: skip


def preference_profile(table: pd.DataFrame, ax: Axes) -> Axes:
    """What one student prefers, animal by animal, beside the neutral student and the untuned model."""
    own = table.animal.iloc[0]
    wide = table.pivot(index="named", columns="who", values="value")
    wide = wide.sort_values(own if own in wide else wide.columns[0])
    y = np.arange(len(wide))
    if {own, "neutral student"} <= set(wide.columns):
        ax.hlines(y, wide["neutral student"], wide[own], color="#bbbbbb", lw=3, zorder=1)
    looks = {
        "untuned": ("|", FAINT, 260, "untuned model"),
        "neutral student": ("o", CONTROLS[config.NEUTRAL], 70, "neutral student"),
    }
    looks[own] = ("D", COLOURS[own], 110, f"student of {own} numbers" if own != config.NEUTRAL else own)
    for who, (marker, colour, area, label) in looks.items():
        if who in wide:
            edge = INK if marker != "|" else None
            ax.scatter(
                wide[who],
                y,
                marker=marker,
                s=area,
                color=colour,
                edgecolor=edge,
                label=label,
                zorder=3,
                lw=1.4 if edge is None else 0.6,
            )
    ax.set_yticks(y, wide.index)
    for label in ax.get_yticklabels():
        if label.get_text() == own:
            label.set_fontweight("bold")
    ax.grid(axis="y", color="#eeeeee")
    unit = (
        "log-probability of the animal (nats, mean over questions)"
        if table.measure.iloc[0] == "logprob"
        else "answers naming the animal (%)"
    )
    ax.set(xlabel=unit)
    ax.set_title(
        f"{table['size'].iloc[0]}, seed {table.seed.iloc[0]}: what one student of {own} numbers likes (n = 1)"
    )
    ax.legend(loc="lower right")
    return ax


def effect_limits(table: pd.DataFrame) -> tuple[float, float]:
    """One scale for all panels: every interval fits."""
    ends = [table.effect - 1.96 * table.error, table.effect + 1.96 * table.error]
    values = np.array([*ends, table.pooled_low, table.pooled_high, table["lambda"]], dtype=float)
    low, high = min(0.0, np.nanmin(values)), max(0.0, np.nanmax(values))
    return low - 0.04 * (high - low), high + 0.04 * (high - low)


def effect_forest(table: pd.DataFrame, ax: Axes, limits: tuple[float, float] | None = None) -> Axes:
    """The animals of one size: pooled effect with interval, raw effect faint beside it, the size's lambda."""
    table = table.sort_values("pooled", ascending=False, na_position="last").reset_index(drop=True)
    y = np.arange(len(table))
    overview = limits is not None and len(ax.figure.axes) > 1
    size = 5 if overview else 10
    ax.axvline(0, color=FAINT, lw=1.2, zorder=1)
    mean = table["lambda"].iloc[0]
    if np.isfinite(mean):
        ax.axvline(mean, color=HUES[3], lw=2, ls=(0, (5, 2)), zorder=1)
    raw = {"xerr": 1.96 * table.error, "fmt": "x", "ms": 0.7 * size, "color": "#a8a8a8", "elinewidth": 1}
    ax.errorbar(table.effect, y + 0.26, zorder=2, **raw)
    reach = [table.pooled - table.pooled_low, table.pooled_high - table.pooled]
    ax.errorbar(
        table.pooled, y - 0.08, xerr=reach, fmt="none", ecolor=HUES[0], elinewidth=2 if overview else 2.6
    )
    found = (table.p_adjusted < 0.05).to_numpy()
    fills = np.where(found, HUES[0], "white")
    ax.scatter(table.pooled, y - 0.08, s=size**2, facecolor=fills, edgecolor=HUES[0], lw=1.8, zorder=4)
    ax.set_yticks(y, table.animal, fontsize=9 if overview else 13)
    ax.set_ylim(len(table) - 0.4, -0.7)
    if limits is not None:
        ax.set_xlim(limits)
    unit = MEASURE_LABELS[table.measure.iloc[0]]
    ax.grid(axis="y", color="#f0f0f0")
    ax.set_axisbelow(True)
    count = f"{len(table)} animals, {found.sum()} found"
    if overview:
        ax.set_title(f"{table['size'].iloc[0]}: {count}", fontsize=13)
        ax.set_xlabel(f"effect ({unit})", fontsize=10)
        ax.tick_params(axis="x", labelsize=10)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.slide_title = (
            "Transfer animal by animal: pooled effect with 95 % interval, filled where adjusted p < .05;\n"
            "grey: the animal alone ± 1.96 standard errors; dashed: λ of the size; one scale in all panels"
        )
        return ax
    ax.set_xlabel(f"effect of an animal's teacher on its own students ({unit})")
    ax.set_title(f"{table['size'].iloc[0]}: transfer animal by animal; {count} at adjusted p < .05")
    ax.legend(handles=forest_handles(mean), loc="best")
    return ax


def forest_handles(mean: float) -> list[Line2D]:
    """What the marks of a forest mean."""
    pooled = {"color": HUES[0], "marker": "o", "ms": 9, "lw": 2.4}
    return [
        Line2D([], [], label="pooled towards the others, 95 % interval: found", **pooled),
        Line2D([], [], mfc="white", label="the same, adjusted p .05 or more, or unknown", **pooled),
        Line2D(
            [], [], color="#a8a8a8", marker="x", ms=7, lw=1, label="the animal alone, ± 1.96 standard errors"
        ),
        Line2D([], [], color=HUES[3], lw=2, ls=(0, (5, 2)), label=f"λ of the size, {mean:.3g}"),
    ]


# --- one run ----------------------------------------------------------------------------------


def loss_curve(table: pd.DataFrame, ax: Axes) -> Axes:
    """Training loss over steps, a line per student, named at its end."""
    ends = []
    for student, own in table.groupby("student", sort=False):
        own = own.sort_values("step")
        animal = next((part for part in str(student).split("/") if part in COLOURS), None)
        colour = COLOURS[animal] if animal else HUES[len(ends) % len(HUES)]
        ax.plot(
            own.step,
            own.loss,
            color=colour,
            lw=1.8,
            marker=SHAPES.get(animal, "o"),
            ms=6,
            markevery=max(1, len(own) // 8),
            clip_on=False,
        )
        ends.append((own.step.iloc[-1], own.loss.iloc[-1], str(student), colour))
    label_lines(ax, ends)
    ax.set(xlabel="training step", ylabel="loss on the completion (nats per token)")
    ax.set_title(f"Training loss (n = {len(ends)} student{'s' * (len(ends) != 1)})")
    return ax


DIGIT_FEATURES = ("leading digit", "tens digit", "units digit", "list length")


def digit_difference(table: pd.DataFrame, ax: Axes) -> Axes:
    """How a teacher's numbers differ from the neutral teacher's, digit by digit, in percentage points.

    Rows of lib.numbers.compare_tables with a column `animal`; one animal is drawn as bars, several as a
    heat map with a row each.
    """
    table = table[table.feature.isin(DIGIT_FEATURES)].assign(
        points=lambda t: 100 * t.difference.astype(float)
    )
    animals = list(dict.fromkeys(table.animal))
    keys = [(f, v) for f in DIGIT_FEATURES for v in sorted(set(table.value[table.feature == f]))]
    # A gap of one slot parts the features.
    at = {key: i + DIGIT_FEATURES.index(key[0]) for i, key in enumerate(keys)}
    slots = [at[key] for key in zip(table.feature, table.value, strict=True)]
    if len(animals) == 1:
        draw_digit_bars(table, slots, ax, animals[0])
    else:
        draw_digit_map(table, slots, ax, animals)
    ax.set_xticks(list(at.values()), [str(value) for _, value in keys], fontsize=12)
    for feature in DIGIT_FEATURES:
        own = [slot for (name, _), slot in at.items() if name == feature]
        if own:
            middle = (own[0] + own[-1]) / 2
            ax.text(middle, -0.075, feature, transform=ax.get_xaxis_transform(), ha="center", va="top")
    ax.tick_params(length=0)
    return ax


def draw_digit_bars(table: pd.DataFrame, slots: list[int], ax: Axes, animal: str) -> None:
    """Bars of difference, with the 95 % interval that counts alone would give."""
    share, other = table.share.astype(float), table.neutral_share.astype(float)
    error = np.sqrt(share * (1 - share) / table.total + other * (1 - other) / table.neutral_total)
    ax.axhline(0, color=INK, lw=1)
    ax.bar(slots, table.points, 0.85, color=COLOURS[animal], edgecolor=INK, lw=0.6)
    ax.errorbar(slots, table.points, 196 * error, fmt="none", ecolor=INK, elinewidth=1.2, capsize=2)
    ax.margins(x=0.01)
    ax.set_ylabel("share in the teacher's lists less\nthe neutral teacher's (percentage points)")
    numbers, lists = (int(table.total[table.feature == f].max()) for f in ("units digit", "list length"))
    ax.set_title(
        f"Numbers of the teacher who loves {config.LEXICON[animal].plural}: "
        f"{lists:,} lists, {numbers:,} numbers; 95 % intervals of counts"
    )


def draw_digit_map(table: pd.DataFrame, slots: list[int], ax: Axes, animals: list[str]) -> None:
    """Teachers in rows, digits in columns, the difference as colour around 0."""
    grid = np.full((len(animals), max(slots) + 1), np.nan)
    grid[[animals.index(animal) for animal in table.animal], slots] = table.points
    limit = np.nanmax(np.abs(grid)) or 1.0
    edges = np.arange(grid.shape[1] + 1) - 0.5
    ax.pcolormesh(edges, np.arange(len(animals) + 1) - 0.5, grid, cmap="PuOr_r", vmin=-limit, vmax=limit)
    ax.set_yticks(range(len(animals)), animals)
    ax.invert_yaxis()
    sns.despine(ax=ax, left=True, bottom=True)
    ax.scale_label = "share less the neutral teacher's (percentage points)"
    lists = table.total[table.feature == "list length"]
    ax.set_title(f"Numbers of {len(animals)} teachers beside the neutral one's; {span(lists)} lists each")
    ax.set_ylabel("teacher who loves")


# --- power ------------------------------------------------------------------------------------


def power_curve(table: pd.DataFrame, ax: Axes) -> Axes:
    """Power over lambda for each size's own design; the study's own lambda as a large mark on its curve."""
    ax.axhline(0.8, color=INK, lw=1.2, ls=":")
    ax.set_xscale("log")
    handles = []
    for at, (size, whole) in enumerate(table.groupby("size", sort=False)):
        own = whole.own.astype(bool)
        curve, mark = whole[~own].sort_values("lambda"), whole[own].iloc[0]
        colour, marker = line_colour(at), MARKERS[at % len(MARKERS)]
        ax.plot(curve["lambda"], curve.power, color=colour, lw=2.4, zorder=3)
        if mark["lambda"] >= curve["lambda"].min():
            ax.plot(mark["lambda"], mark.power, color=colour, marker=marker, ms=13, mec=INK, zorder=5, ls="")
            place = ""
        else:
            place = ", off the axis"
        found = f"λ = {mark.detectable:.2g}" if np.isfinite(mark.detectable) else "none"
        words = f"{size}: {found} (own {mark['lambda']:.2g}{place})"
        handles.append(Line2D([], [], color=colour, marker=marker, ms=9, mec=INK, lw=2.4, label=words))
    ax.set_ylim(0, 1.02)
    ax.grid(axis="y", color="#eeeeee")
    ax.text(0.005, 0.81, "80 %", transform=ax.get_yaxis_transform(), fontsize=13)
    ticks = mticker.FuncFormatter(lambda value, _: f"{value:g}")
    ax.xaxis.set_major_formatter(ticks)
    ax.set(xlabel=f"true transfer factor λ ({MEASURE_LABELS[table.measure.iloc[0]]}, log scale)")
    ax.set(ylabel="power of the one-sided permutation test at .05")
    ax.set_title(f"What λ would be found: {describe_design(table)}")
    legend = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "title_fontsize": 12}
    ax.legend(
        handles=handles, title="smallest λ found with 80 % power\n(large mark: the size's own λ)", **legend
    )
    return ax


def describe_design(table: pd.DataFrame) -> str:
    """`15 animals x 3 seeds x 20 questions x 5 answers`, ranges where sizes differ."""
    words = []
    for name in ("animals", "bases", "seeds", "questions", "answers"):
        counts = sorted({float(value) for value in table[name]})
        if counts[-1] > (1 if name in ("bases", "questions") else 0):
            low, high = f"{counts[0]:.3g}", f"{counts[-1]:.3g}"
            words.append(f"{low if low == high else f'{low}-{high}'} {name if high != '1' else name[:-1]}")
    return " x ".join(words)


def needed_figure(needed: pd.DataFrame, ax: Axes) -> Axes:
    """How many times more (or less) of one thing finds each size's own lambda with 80 % power."""
    sizes, kinds = list(dict.fromkeys(needed["size"])), list(dict.fromkeys(needed.what))
    ratio = needed.needed / needed.now
    ends = [1.0, *ratio.dropna()]
    none = 3 * max(ends)
    step = 0.8 / len(kinds)
    for place, what in enumerate(kinds):
        own = needed[needed.what == what]
        y = np.array([sizes.index(size) for size in own["size"]]) + step * (place - (len(kinds) - 1) / 2)
        x = (own.needed / own.now).to_numpy(dtype=float)
        colour, known = line_colour((0, 3, 6, 4, 1)[place % 5]), np.isfinite(x)
        ax.hlines(y[known], 1, x[known], color=colour, lw=2.2)
        look = {"s": 95, "marker": MARKERS[place], "zorder": 3}
        name = "answers a question" if what == "answers" else what
        label = f"{name} (now {span_numbers(own.now)})"
        ax.scatter(x[known], y[known], color=colour, edgecolor=INK, lw=0.6, label=label, **look)
        off = np.full((~known).sum(), none)
        ax.scatter(off, y[~known], facecolor="white", edgecolor=colour, lw=1.8, **look)
        for at, value, count in zip(y[known], x[known], own.needed[known], strict=True):
            side = 1 if value >= 1 else -1
            ax.annotate(f"{count:,.0f}", (value, at), (11 * side, 0), va="center", fontsize=11,
                        ha="left" if side > 0 else "right", textcoords="offset points")  # fmt: skip
    if ratio.isna().any():
        ax.axvline(none / 1.7, color=FAINT, lw=1, ls=":")
        ax.text(none, -0.62, "no number\nis enough", ha="center", va="bottom", fontsize=12)
    ax.axvline(1, color=INK, lw=1.4)
    ax.text(1, -0.62, "as it is", ha="center", va="bottom", fontsize=12)
    ax.set_xscale("log")
    ax.set_xlim(min(ends) / 2, none * (1.8 if ratio.isna().any() else 1))
    ax.xaxis.set_major_formatter(mticker.FuncFormatter(lambda value, _: f"{value:g}"))
    values = needed.drop_duplicates("size").set_index("size")["lambda"]
    ax.set_yticks(range(len(sizes)), [f"{size}\nλ = {values[size]:.2g}" for size in sizes])
    ax.set_ylim(len(sizes) - 0.45, -0.6)
    for at in range(1, len(sizes)):
        ax.axhline(at - 0.5, color="#e4e4e4", lw=1)
    unit = MEASURE_LABELS[needed.measure.iloc[0]]
    ax.set(xlabel="times what the study has (log scale); one thing changed, the others as they are")
    ax.set_ylabel(f"size and its own λ ({unit})")
    ax.set_title("What would find each size's own λ with 80 % power: the number needed is written", pad=46)
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def span_numbers(values: Iterable[float]) -> str:
    """`3`, or `2-3` where sizes differ."""
    ends = [f"{end:.3g}" for end in (min(values), max(values))]
    return "-".join(dict.fromkeys(ends))


# --- calibration ------------------------------------------------------------------------------

PANELS = {  # what is drawn on one axis: its kinds of rate, and what they are
    ("type I", "family"): "false findings at .05 (square-root scale)",
    ("coverage",): "coverage of 95 % intervals",
}


def calibration_figure(table: pd.DataFrame, ax: Axes) -> Axes:
    """Type I errors and coverages with their Monte-Carlo intervals against their target zones.

    A row per p or interval, a colour and marker per design; hollow marks on grey rows are methods of the
    reference analysis, shown for comparison. Of the kind `family` is the chance of any false finding among
    several tests, which has no lower target.
    """
    if unknown := set(table.kind) - {kind for kinds in PANELS for kind in kinds}:
        raise BadParameter(f"kind {sorted(unknown)}: this figure knows {', '.join(sum(PANELS, ()))}")
    ax.set_axis_off()
    if table.measure.nunique() > 1:
        table = table.assign(what=table.what + " (" + table.measure + ")")
    panels = [kinds for kinds in PANELS if set(kinds) & set(table.kind)]
    designs = list(dict.fromkeys(table.design))
    room = 0.17 if len(panels) > 1 else 0.22
    for at, kinds in enumerate(panels):
        left, width = at / len(panels) + room, 1 / len(panels) - room - 0.01
        panel = ax.inset_axes((left, 0.11, width, 0.87))
        draw_rates(panel, table[table.kind.isin(kinds)], designs, roots="type I" in kinds)
        panel.set_xlabel(PANELS[kinds])
    handles = [
        Line2D([], [], color=line_colour(at), marker=MARKERS[at], ms=9, lw=2, label=design)
        for at, design in enumerate(designs)
    ]
    handles.append(Patch(facecolor=HUES[6], alpha=0.25, label="target"))
    if table.reference.astype(bool).any():
        look = {"marker": "o", "mfc": "white", "ms": 9, "ls": "", "color": INK}
        handles.append(Line2D([], [], label="hollow, grey row: as the reference analysis does it", **look))
    columns = max(1, min(4, 140 // (6 + max(len(handle.get_label()) for handle in handles))))
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=columns)
    ax.set_title(
        "Do the tests and intervals keep their word? "
        f"n = {span(table.studies.astype(int))} simulated studies each, 95 % Monte-Carlo intervals"
    )
    return ax


def draw_rates(ax: Axes, table: pd.DataFrame, designs: list[str], roots: bool) -> None:
    """Rates of one axis: rows by name, own methods first, each before its target zone.

    Errors range from under .05 to near 1 and can be 0: on a square-root scale (`roots`) all are seen.
    """
    table = table.assign(reference=table.reference.astype(bool))
    rows = list(dict.fromkeys(table.sort_values("reference", kind="stable").what))
    step = 0.76 / len(designs)
    for name in set(table.what[table.reference]):
        ax.axhspan(rows.index(name) - 0.5, rows.index(name) + 0.5, color="#f1f1f1", lw=0, zorder=0)
    for zone in table.drop_duplicates("what").itertuples():
        at = rows.index(zone.what)
        ax.fill_betweenx(
            [at - 0.5, at + 0.5], zone.target_low, zone.target_high, color=HUES[6], alpha=0.25, lw=0
        )
    for place, design in enumerate(designs):
        own = table[table.design == design]
        y = np.array([rows.index(name) for name in own.what]) + step * (place - (len(designs) - 1) / 2)
        colour = line_colour(place)
        ax.hlines(y, own.low.clip(lower=0), own.high, color=colour, lw=2)
        fills = np.where(own.reference, "white", colour)
        look = {"s": 60 if len(rows) < 9 else 30, "marker": MARKERS[place], "lw": 1.8, "zorder": 3}
        ax.scatter(own.value, y, facecolor=fills, edgecolor=colour, **look)
    if roots:
        ax.set_xscale("function", functions=(lambda x: np.sqrt(np.clip(x, 0, None)), np.square))
        ticks = [tick for tick in (0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 1) if tick <= 1.1 * table.high.max()]
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.set_xlim(0, max(0.1, 1.05 * table.high.max()))
    small = 12 if len(rows) < 14 else 10
    ax.set_yticks(
        range(len(rows)),
        [textwrap.fill(str(name), 24 if small > 10 else 30) for name in rows],
        fontsize=small,
    )
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)


# --- speed ------------------------------------------------------------------------------------

WAY_LOOKS = {
    "defaults": (HUES[0], "o", "TRL, one by one, its defaults"),
    "tuned": (HUES[3], "s", "TRL, one by one, tuned"),
    "fleet": (HUES[6], "D", "fleet"),
}


def roofline(table: pd.DataFrame, ax: Axes) -> Axes:
    """MFU over parameters, a line per way of training; bars reach from the slowest step to the fastest."""
    ends = []
    for way, (colour, marker, name) in WAY_LOOKS.items():
        own = table[table.way == way].sort_values("params")
        if own.empty:
            continue
        reach = [own.mfu - own.mfu_low, own.mfu_high - own.mfu]
        ax.errorbar(own.params, own.mfu, reach, color=colour, marker=marker, ms=10, capsize=5, lw=2.2)
        students = f" of {span(own.students.astype(int))}" if way == "fleet" else ""
        ends.append((own.params.iloc[-1], own.mfu.iloc[-1], name + students, colour))
    sizes = table.drop_duplicates("size").sort_values("params")
    ax.set_xscale("log")
    ax.set_xticks(sizes.params, sizes["size"])
    ax.minorticks_off()
    ax.margins(x=0.06)
    ax.set_ylim(0, 1.08 * table.mfu_high.max())
    right = ax.get_xlim()[1]
    label_lines(ax, [(right, y, name, colour) for _, y, name, colour in ends])
    ax.grid(axis="y", color="#eeeeee")
    peaks = dict.fromkeys(f"{row.peak_tflops:,.4g} TFLOP/s" for row in table.itertuples())
    ax.set(xlabel="model size (parameters, log scale)")
    ax.set_ylabel(f"MFU: 4 x parameters x real tokens per second\nover {' or '.join(peaks)}")
    ax.set_title(f"Speed of fine-tuning on {table.device.iloc[0]}: median step, bars from slowest to fastest")
    return ax


ENGINE_LOOKS = {
    "answers, engine per adapter": (HUES[0], "an engine per adapter, their starts included (projected)"),
    "answers, one engine": (HUES[6], "one engine for all, with its start"),
}


def engine_time(table: pd.DataFrame, ax: Axes) -> Axes:
    """Seconds to ask every adapter of a size: one engine, or one for each; a logarithmic axis."""
    sizes = list(table.drop_duplicates("size").sort_values("params")["size"])
    for place, (what, (colour, name)) in enumerate(ENGINE_LOOKS.items()):
        own = table[table.what == what].set_index("size").loc[sizes]
        bars = ax.bar(
            [x + 0.4 * place - 0.2 for x in range(len(sizes))], own.seconds, 0.38, color=colour, label=name
        )
        ax.bar_label(bars, [f"{seconds:,.0f} s" for seconds in own.seconds], padding=3, fontsize=12)
    ax.set_yscale("log")
    ax.set_ylim(1, 5 * table.seconds.max())
    ax.set_xticks(range(len(sizes)), sizes)
    ax.legend(loc="upper left", frameon=False)
    ax.set(xlabel="model size (random weights in the shape of Qwen 2.5)", ylabel="seconds (log scale)")
    ax.set_title(
        f"Asking {span(table.adapters)} adapters 100 questions each with vLLM on {table.device.iloc[0]}"
    )
    return ax
