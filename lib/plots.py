"""One function per figure, `(table, ax) -> ax`: it draws a tidy table and reads no disk.

`draw` puts one on a slide (14 x 8 inches, 150 DPI) and keeps the table with it; `save_figure` writes the
PNG and the CSV it was drawn from side by side. An animal has one colour and one marker everywhere.
"""

import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import matplotlib.colors as mcolors
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from lib import config, files

INCHES, DPI = (14, 8), 150
STYLE = {
    **sns.axes_style("ticks"),
    **{"font.size": 14, "axes.titlesize": 16, "axes.labelsize": 15, "legend.fontsize": 12},
    **{"xtick.labelsize": 13, "ytick.labelsize": 13, "figure.titlesize": 18, "hatch.linewidth": 0.8},
    **{"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "axes.titlepad": 12},
}
# Okabe & Ito's hues, told apart by colour-blind readers; thirty animals need them in several shades,
# and no figure relies on the shade alone: markers, hatches, labels or position say the same.
# In this order neighbours differ most, over sixteen animals and the three common kinds of sight.
HUES = ("#0072B2", "#E69F00", "#56B4E9", "#D55E00", "#CC79A7", "#F0E442", "#009E73")
SHADES = (("white", 0.0), ("black", 0.45), ("white", 0.55), ("black", 0.7), ("white", 0.3))
MARKERS = "osD^vPX<>ph*d8H"
CONTROLS = {config.UNTUNED: "#d0d0d0", config.NEUTRAL: "#6e6e6e", "neutral student": "#6e6e6e"}
LEFTOVERS = {"other": "#e8e8e8", "none": "#ffffff"}
INK, FAINT = "#222222", "#8a8a8a"
MEASURE_LABELS = {
    "logprob": "nats of log-probability",
    "rate": "percentage points of answers",
}


def mix(colour: str, other: str, share: float) -> str:
    """A colour with a share of another in it."""
    a, b = np.array(mcolors.to_rgb(colour)), np.array(mcolors.to_rgb(other))
    return mcolors.to_hex((1 - share) * a + share * b)


def shade(at: int) -> str:
    """The colour at a place of the list of animals."""
    return mix(HUES[at % len(HUES)], *SHADES[at // len(HUES) % len(SHADES)])


COLOURS: dict[str, str] = {name: shade(at) for at, name in enumerate(config.LEXICON)} | CONTROLS | LEFTOVERS
SHAPES: dict[str, str] = {name: MARKERS[at % len(MARKERS)] for at, name in enumerate(config.LEXICON)}
HATCHES: dict[str, str] = {
    name: ("", "//", "..", "xx", "\\\\")[at // len(HUES)] for at, name in enumerate(config.LEXICON)
}
HATCHES |= {"none": "...."}


# --- slides -----------------------------------------------------------------------------------


class Slide(Figure):
    """A figure that carries the table it was drawn from and shows itself in a notebook."""

    table: pd.DataFrame

    def _repr_png_(self) -> bytes:
        return encode_png(self)


class Deck(dict[str, Slide]):
    """Several slides of one kind, by name; a notebook shows them below one another."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        for slide in self.values():
            slide.canvas.draw()
        pictures = [np.asarray(slide.canvas.buffer_rgba()) for slide in self.values()]
        plt.imsave(buffer, np.vstack(pictures), metadata={"Software": None}, format="png")
        return buffer.getvalue()


def encode_png(fig: Figure) -> bytes:
    """The slide's picture, the same bytes for the same figure."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


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
        meshes = [ax.collections[0] for ax in axes[: len(values)] if getattr(ax, "scale_label", "")]
        if meshes:
            slide.colorbar(meshes[0], ax=list(axes), shrink=0.6, label=axes[0].scale_label)
    slide.table = table
    return slide


def draw_nothing(table: pd.DataFrame) -> Slide:
    """A slide that says there is nothing to draw: an empty table must not pass for an empty effect."""
    slide = Slide(figsize=INCHES, dpi=DPI)
    FigureCanvasAgg(slide)
    slide.text(0.5, 0.5, "no data for this figure: see the list of missing cells", ha="center", fontsize=18)
    slide.table = table
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


def save_figures(folder: Path, **slides: Slide | Deck) -> list[Path]:
    """Save each slide under its argument's name; those of a deck have their own name behind it."""
    written = []
    for name, slide in slides.items():
        named: Mapping[str, Slide] = {name: slide} if isinstance(slide, Slide) else {
            f"{name}_{part}": each for part, each in slide.items()
        }  # fmt: skip
        for stem, each in named.items():
            written += save_figure(each, each.table, folder, stem)
    return written


# --- shared parts -----------------------------------------------------------------------------


def format_p(p: float) -> str:
    """p as papers write it."""
    if np.isnan(p):
        return "p unknown"
    if p < 0.0001:
        return "p < .0001"
    return f"p = {p:.4f}".replace("0.", ".") if p < 0.01 else f"p = {p:.2f}".replace("0.", ".")


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
        ink = mix(colour, "black", 0.25)
        ax.text(right, height, f"  {text}", color=ink, va="center", fontsize=12)


def span(values: Iterable[int]) -> str:
    """`2`, or `1-2` where the counts differ."""
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}-{high}"


# --- over sizes -------------------------------------------------------------------------------


def scaling_curve(table: pd.DataFrame, ax: Axes) -> Axes:
    """lambda over parameters: sizes with their interval, each base a point, p and n written at each size."""
    sizes = table[table.level == "size"].sort_values("params")
    several = sizes["size"][sizes.n_bases > 1]  # the only base of a size is its mean
    bases = table[(table.level == "base") & table["size"].isin(several)]
    ax.axhline(0, color=FAINT, lw=1.2, zorder=1)
    ax.plot(sizes.params, sizes["lambda"], color=HUES[0], lw=2, zorder=3)
    reach = [sizes["lambda"] - sizes.ci_low, sizes.ci_high - sizes["lambda"]]
    ax.errorbar(
        sizes.params, sizes["lambda"], reach, fmt="o", ms=11, color=HUES[0], capsize=6, lw=2, zorder=4
    )
    ax.scatter(
        bases.params * 1.06, bases["lambda"], s=60, facecolor="white", edgecolor=HUES[3], lw=1.8, zorder=5
    )
    ax.set_xscale("log")
    ax.set_xticks(
        sizes.params,
        [f"{row['size']}\n{count_words(row)}".replace(" x ", " x\n") for _, row in sizes.iterrows()],
    )
    ax.minorticks_off()
    ax.margins(x=0.08)
    top = ax.get_ylim()[1]
    for row in sizes.itertuples():
        ax.annotate(format_p(row.p), (row.params, top), ha="center", va="bottom", color=INK, fontsize=13)
    unit = MEASURE_LABELS[sizes.measure.iloc[0]]
    ax.set(xlabel="model size (parameters, log scale)", ylabel=f"transfer factor λ\n({unit})")
    ax.set_title(
        f"Transfer over model size: {int(sizes.n_students.sum())} students, epoch {sizes.epoch.iloc[0]}",
        pad=34,
    )
    handles = [
        Line2D([], [], color=HUES[0], marker="o", ms=9, label="mean of a size, with its 95 % interval"),
        Line2D([], [], color=HUES[3], marker="o", mfc="white", ms=8, ls="", label="each base model"),
    ]
    ax.legend(handles=handles[: 1 if bases.empty else 2], loc="best")
    return ax


def epoch_curve(table: pd.DataFrame, ax: Axes) -> Axes:
    """lambda over epochs, a line with its 95 % band per size, named at its end."""
    sizes = list(dict.fromkeys(table.sort_values("params")["size"]))
    ax.plot([table.epoch.min(), table.epoch.max()], [0, 0], color=FAINT, lw=1.2)
    ends = []
    for at, size in enumerate(sizes):
        own = table[table["size"] == size].sort_values("epoch")
        colour = HUES[at % len(HUES)] if HUES[at % len(HUES)] != "#F0E442" else "#8c7a00"
        ax.plot(
            own.epoch,
            own["lambda"],
            color=colour,
            marker=MARKERS[at % len(MARKERS)],
            ms=9,
            lw=2.2,
            clip_on=False,
        )
        ax.fill_between(own.epoch, own.ci_low, own.ci_high, color=colour, alpha=0.13, lw=0)
        last = own.iloc[-1]
        ends.append((last.epoch, last["lambda"], f"{size} (n = {int(last.n_students)})", colour))
    label_lines(ax, [end for end in ends if np.isfinite(end[1])])
    ax.set_xticks(sorted(table.epoch.unique()))
    unit = MEASURE_LABELS[table.measure.iloc[0]]
    ax.set(xlabel="epoch of fine-tuning", ylabel=f"transfer factor λ\n({unit})")
    ax.set_title("Transfer over training; n students, bands are pointwise 95 % intervals")
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
