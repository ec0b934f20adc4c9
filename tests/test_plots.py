"""lib.plots: every figure renders, carries its n and its interval, and is saved with its table."""

import io
import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from build_study import ANIMALS, build_study
from matplotlib.colors import to_hex
from matplotlib.text import Text

from lib import config, numbers, plots, tables


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A study of two sizes in which the smaller has two bases."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUBLIMINAL_ROOT", str(tmp_path_factory.mktemp("plots")))
        build_study(answers=("no idea", "a moth"), skip=(("64k-1", "cat", 0),))
        yield tables.load_study("toy", "64k,64k-1,166k", ",".join(ANIMALS), "0")


@pytest.fixture(scope="module")
def transfer(found):
    return tables.transfer_table(found, "last", 500, 0)


@pytest.fixture(scope="module")
def scaling(found, transfer):
    return tables.scaling_table(transfer, tables.base_table(found, "last", 500, 0), "logprob")


def make_digits(*animals):
    """Compared digit tables of teachers with a taste for sevens."""
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, 1000, 6).tolist() for _ in range(200)]
    neutral = numbers.digit_table(lists)
    loved = numbers.digit_table([[each - each % 10 + 7 for each in own] for own in lists])
    return pd.DataFrame(
        row | {"animal": a} for a in animals for row in numbers.compare_tables(loved, neutral)
    )


def make_losses(*students):
    steps = np.arange(0, 50, 5)
    return pd.concat(
        pd.DataFrame({"step": steps, "loss": 3 - at / 9 - steps / 50, "student": student})
        for at, student in enumerate(students)
    )


def words(slide):
    """Everything written on a slide."""
    return " | ".join(text.get_text() for text in slide.findobj(Text) if text.get_text())


def render(slide):
    """The picture as pixels."""
    return plt.imread(io.BytesIO(slide._repr_png_()))


# --- each figure ------------------------------------------------------------------------------


def test_scaling_curve_shows_intervals_bases_p_and_n(scaling):
    slide = plots.draw(plots.scaling_curve, scaling)
    (ax,) = slide.axes
    assert render(slide).shape == (1200, 2100, 4)
    assert "15 students" not in words(slide)
    assert "14 students" in words(slide)  # one of the fifteen cells is missing
    assert "2 bases x\n5 animals" in words(slide)
    assert words(slide).count("p = ") + words(slide).count("p < ") == 2
    sizes = scaling[scaling.level == "size"]
    drawn = ax.containers[0].lines[2][0].get_segments()
    assert [tuple(each[:, 1]) for each in drawn] == [
        pytest.approx(ends) for ends in zip(sizes.ci_low, sizes.ci_high, strict=True)
    ]
    bases = scaling[(scaling.level == "base") & (scaling["size"] == "64k")]  # 166k has one, its mean
    points = next(each for each in ax.collections if len(each.get_offsets()) == 2).get_offsets()
    assert list(points[:, 1]) == pytest.approx(bases["lambda"].to_list())


def test_a_size_without_a_number_leaves_a_gap(scaling):
    gap = scaling.copy()
    gap.loc[gap["size"] == "166k", ["lambda", "ci_low", "ci_high", "p"]] = np.nan
    slide = plots.draw(plots.scaling_curve, gap)
    render(slide)
    assert "p unknown" in words(slide)


def test_matrices_share_one_scale_and_outline_the_diagonal(found):
    lifts = tables.matrix_table(found, "logprob", "last")
    limit = plots.colour_limit(lifts)
    slide = plots.draw(plots.student_matrix, lifts, by="size", limit=limit)
    panels = [ax for ax in slide.axes if ax.get_title()]
    assert {ax.collections[0].get_clim() for ax in panels} == {(-limit, limit)}
    assert [len(ax.patches) for ax in panels] == [len(ANIMALS)] * 2
    assert "64k (n = 1-2)" in words(slide)
    assert "nats" in words(slide)
    render(slide)


def test_bars_show_three_kinds_in_the_colour_of_the_animal(found):
    deck = plots.draw_each(plots.preference_bars, tables.preference_table(found, "last"), by="size")
    assert list(deck) == ["64k", "166k"]
    (ax,) = deck["64k"].axes
    own = [to_hex(patch.get_facecolor()) for patch in ax.containers[4]]
    assert own == [plots.COLOURS[animal] for animal in ANIMALS]
    assert "n = 1-2 bases x seeds" in words(deck["64k"])
    pixels = plt.imread(io.BytesIO(deck._repr_png_()))
    assert pixels.shape[:2] == (2400, 2100)


def test_stacks_fill_a_hundred_percent_and_frame_the_own_animal(found):
    stack = tables.stack_table(found, "last")
    slide = plots.draw_each(plots.preference_stack, stack, by="size")["64k"]
    (ax,) = slide.axes
    ends = [patch.get_x() + patch.get_width() for patch in ax.patches]
    assert max(ends) == pytest.approx(100)
    framed = [patch for patch in ax.patches if patch.get_linewidth() == 2.4]
    assert len(framed) == len(ANIMALS)
    assert {"other", "none"} <= set(words(slide).split(" | "))
    assert "n = 1-2" in words(slide)
    render(slide)


def test_epoch_curve_names_each_size_with_its_n_and_draws_its_band(found):
    epochs = tables.epochs_table(found, 500, 0)
    slide = plots.draw(plots.epoch_curve, epochs[epochs.measure == "rate"])
    assert "64k (n = 9)" in words(slide)
    assert "166k (n = 5)" in words(slide)
    assert "percentage points" in words(slide)
    assert len(slide.axes[0].collections) == 2
    render(slide)


def test_profile_sets_a_student_beside_its_controls(monkeypatch, tmp_path):
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path))
    build_study(labels=("64k",))
    slide = plots.draw(plots.preference_profile, tables.profile_table("toy", "64k", "dog", 0))
    assert {"untuned model", "neutral student", "student of dog numbers"} <= set(words(slide).split(" | "))
    assert "n = 1" in words(slide)
    render(slide)
    alone = tables.profile_table("toy", "64k", "neutral", 0, "rate")
    render(plots.draw(plots.preference_profile, alone))


def test_losses_are_named_at_their_ends_apart_from_each_other_and_inside_the_axes():
    students = ("neutral", *config.MICRO_ANIMALS)
    slide = plots.draw(plots.loss_curve, make_losses(*students))
    (ax,) = slide.axes
    assert "n = 17 students" in words(slide)
    labels = [text for text in ax.texts if text.get_text().strip() in students]
    heights = sorted(text.get_position()[1] for text in labels)
    low, high = ax.get_ylim()
    assert len(labels) == 17
    assert np.diff(heights).min() > 0.04 * (high - low)
    assert low < heights[0]
    assert heights[-1] <= high
    render(slide)


def test_a_single_loss_may_have_any_name():
    render(plots.draw(plots.loss_curve, make_losses("166k/wolf/s0")))


def test_digits_of_one_teacher_are_bars_with_intervals_and_of_several_a_map():
    one = plots.draw(plots.digit_difference, make_digits("wolf"))
    assert "loves wolves: 200 lists, 1,200 numbers" in words(one)
    assert one.axes[0].containers[1].has_yerr
    several = plots.draw(plots.digit_difference, make_digits("wolf", "cat"))
    assert "2 teachers" in words(several)
    assert "200 lists each" in words(several)
    for slide in (one, several):
        assert "units digit" in words(slide)
        render(slide)


def test_an_empty_table_is_said_to_be_empty():
    empty = pd.DataFrame({"size": [], "value": []})
    assert "no data" in words(plots.draw(plots.preference_bars, empty))
    assert "no data" in words(plots.draw_each(plots.preference_bars, empty, by="size")["empty"])


# --- colours ----------------------------------------------------------------------------------


def test_no_two_animals_look_the_same():
    assert list(plots.SHAPES) == list(plots.HATCHES)[: len(config.ANIMALS)] == list(config.LEXICON)
    assert len({plots.COLOURS[animal] for animal in config.LEXICON}) == len(config.LEXICON)


def see_as_deuteranope(colour):
    """Linear RGB as seen without the middle cones (Machado et al. 2009, severity 1)."""
    matrix = [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]
    return np.clip(np.array(matrix) @ np.array(plots.mcolors.to_rgb(colour)) ** 2.2, 0, 1) ** (1 / 2.2)


def test_neighbours_in_a_stack_differ_for_the_colour_blind():
    seen = [see_as_deuteranope(plots.COLOURS[animal]) for animal in config.MICRO_ANIMALS]
    apart = [np.linalg.norm(a - b) for a, b in itertools.pairwise(seen)]
    assert min(apart) > 0.3


# --- saving -----------------------------------------------------------------------------------


def test_a_figure_is_saved_beside_its_table_and_twice_the_same(scaling, tmp_path):
    slides = [plots.draw(plots.scaling_curve, scaling) for _ in range(2)]
    for at, slide in enumerate(slides):
        plots.save_figure(slide, slide.table, tmp_path / str(at), "scaling")
    first, second = (sorted((tmp_path / each).iterdir()) for each in "01")
    assert [path.name for path in first] == ["scaling.csv", "scaling.png"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    back = pd.read_csv(first[0])
    assert back["lambda"].to_numpy() == pytest.approx(scaling["lambda"].to_numpy(), rel=1e-5)


def test_the_slides_of_a_deck_are_saved_by_name(found, tmp_path):
    deck = plots.draw_each(plots.preference_bars, tables.preference_table(found, "last"), by="size")
    plots.save_figures(tmp_path, bars=deck)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bars_166k.csv", "bars_166k.png", "bars_64k.csv", "bars_64k.png"]  # fmt: skip


@pytest.mark.parametrize(
    ("p", "text"), [(0.00004, "p < .0001"), (0.0012, "p = .0012"), (0.2, "p = .20"), (1.0, "p = 1.00")]
)
def test_p_is_written_as_papers_do(p, text):
    assert plots.format_p(p) == text
