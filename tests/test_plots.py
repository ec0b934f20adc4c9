"""lib.plots: every figure renders, carries its n and its interval, and is saved with its table."""

import io
import itertools
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from build_study import ANIMALS, build_study
from matplotlib.colors import to_hex, to_rgb
from matplotlib.text import Text

from lib import charts, config, numbers, plots, power, tables
from lib.errors import BadParameter


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
    return plt.imread(io.BytesIO(slide._repr_png_()[0]))


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
    assert render(deck["64k"]).shape[:2] == (1200, 2100)


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


# --- students and laws over sizes -------------------------------------------------------------


def make_band(scaling, law="inverted-u", known=True):
    """Rows of a law's curve over the sizes of a table."""
    params = np.geomspace(scaling.params.min(), scaling.params.max(), 9)
    rows = pd.DataFrame({"level": "band", "size": law, "params": params, "lambda": np.linspace(0.1, 0.2, 9)})
    reach = 0.05 if known else np.nan
    return rows.assign(ci_low=rows["lambda"] - reach, ci_high=rows["lambda"] + reach)


def make_student_rows(scaling, values):
    size = scaling[scaling.level == "size"].iloc[0]
    seeds = range(len(values))
    return pd.DataFrame({"level": "student", "size": size["size"], "params": size.params, "base": 0,
                         "seed": seeds, "animal": "cat", "lambda": values})  # fmt: skip


def test_students_beyond_the_view_stand_at_its_edge_and_are_counted(scaling):
    rows = make_student_rows(scaling, [0.05, 0.1, 40.0, 50.0, -30.0])
    slide = plots.draw(plots.scaling_curve, pd.concat([scaling, rows], ignore_index=True))
    (ax,) = slide.axes
    assert "3 beyond the view" in words(slide)
    assert ax.get_ylim()[1] < 10
    drawn = np.concatenate([each.get_offsets() for each in ax.collections if len(each.get_offsets())])
    heights = drawn[:, 1]
    assert (heights == ax.get_ylim()[1]).sum() == 2
    assert (heights == ax.get_ylim()[0]).sum() == 1
    assert 0.05 in heights
    assert f"epoch {scaling.epoch.iloc[0]}" in words(slide)
    render(slide)


def test_students_are_set_apart_the_same_way_every_time(scaling):
    table = pd.concat([scaling, make_student_rows(scaling, [0.1, 0.1, 0.1])], ignore_index=True)
    places = []
    for _ in range(2):
        (ax,) = plots.draw(plots.scaling_curve, table).axes
        (points,) = [each.get_offsets() for each in ax.collections if len(each.get_offsets()) == 3]
        places.append(points)
    assert len(set(places[0][:, 0])) == 3
    assert (places[0] == places[1]).all()


def test_a_law_is_a_line_with_its_band_and_dashed_without_one(scaling):
    for known, style, said in (
        (True, "-", "with its pointwise 95 % band"),
        (False, "--", "no band to be had"),
    ):
        table = pd.concat([scaling, make_band(scaling, known=known)], ignore_index=True)
        slide = plots.draw(plots.scaling_curve, table)
        (ax,) = slide.axes
        lines = [line for line in ax.lines if np.isfinite(np.asarray(line.get_ydata(), float)).sum() == 9]
        assert [line.get_linestyle() for line in lines] == [style]
        assert f"law: inverted-u (sizes weigh by precision), {said}" in words(slide)
        render(slide)


def make_laws():
    columns = ["law", "k", "weight", "loso_rmse", "fit_p", "parameters"]
    rows = [
        ("none", 1, 0.2, 3.0, 0.04, "level 1.2"),
        ("power", 2, 0.8, 2.0, 0.3, "1.1 N^0.5"),
        ("inverted-u", 3, np.nan, np.nan, np.nan, "not fitted: three sizes"),
    ]
    return pd.DataFrame(rows, columns=columns).assign(measure="rate", n=7)


def test_laws_show_weight_error_and_parameters():
    slide = plots.draw(plots.laws_figure, make_laws())
    weights, errors = slide.axes[0].child_axes
    assert [bar.get_width() for bar in weights.patches] == [0.8, 0.2, 0]  # the best first
    assert list(errors.lines[0].get_xdata()[:2]) == [2.0, 3.0]
    for said in ("power\nk = 2", "1.1 N^0.5\nmisfit p = .30", "not fitted", "n = 7", "percentage points"):
        assert said in words(slide)
    render(slide)


# --- parts, cells, power, calibration ---------------------------------------------------------


def make_effects():
    rows = [
        {"size": size, "params": params, "animal": animal, "effect": scale * at, "error": scale,
         "pooled": 0.8 * scale * at, "pooled_low": (0.8 * at - 1) * scale,
         "pooled_high": (0.8 * at + 1) * scale,
         "p": 0.01, "p_adjusted": 0.01 if at > 2 else 0.4, "lambda": 1.5 * scale, "measure": "rate"}
        for size, params, scale in (("3b", 3e9, 1.0), ("14b", 14e9, 10.0))
        for at, animal in enumerate(("cat", "dog", "lion", "wolf"))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_a_forest_is_sorted_and_fills_what_was_found():
    deck = plots.draw_each(plots.effect_forest, make_effects(), by="size")
    (ax,) = deck["14b"].axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["wolf", "lion", "dog", "cat"]
    marks = next(each for each in ax.collections if len(each.get_offsets()) == 4)
    assert [to_hex(colour) for colour in marks.get_facecolor()] == [plots.HUES[0].lower()] + ["#ffffff"] * 3
    assert "4 animals, 1 found at adjusted p < .05" in words(deck["14b"])
    assert "λ of the size, 15" in words(deck["14b"])
    render(deck["14b"])


def test_an_overview_of_forests_has_one_scale_that_holds_every_interval():
    effects = make_effects()
    slide = plots.draw(plots.effect_forest, effects, by="size", limits=plots.effect_limits(effects))
    assert len({ax.get_xlim() for ax in slide.axes}) == 1
    low, high = slide.axes[0].get_xlim()
    assert low < (effects.effect - 1.96 * effects.error).min()
    assert high > (effects.effect + 1.96 * effects.error).max()
    assert "one scale in all panels" in words(slide)
    render(slide)


def test_a_forest_of_cells_that_cannot_be_tested_still_draws():
    effects = make_effects().assign(p_adjusted=np.nan)
    effects.loc[0, ["effect", "pooled", "pooled_low", "pooled_high"]] = np.nan
    slide = plots.draw_each(plots.effect_forest, effects, by="size")["3b"]
    assert "0 found" in words(slide)
    render(slide)


def test_lambda_is_split_into_two_bars_with_intervals(transfer):
    table = transfer[transfer.measure == "rate"].copy()
    table["own"], table["rest"] = 0.7 * table["lambda"], 0.3 * table["lambda"]
    for part in ("own", "rest"):
        table[f"{part}_low"], table[f"{part}_high"] = table[part] - 1, table[part] + 1
    slide = plots.draw(plots.split_bars, table)
    (ax,) = slide.axes
    heights = [bar.get_height() for bar in ax.patches]
    assert heights == pytest.approx([*table.sort_values("params").own, *table.sort_values("params").rest])
    assert "n = 9" in words(slide)
    assert "percentage points" in words(slide)
    render(slide)


SIZES = {
    "3b": (
        power.Parts(1.5, teacher=1.0, student=2.0, answers=300.0, animal=2.0),
        power.Plan(15, 3, 1, 20, 5),
    ),
    "0.5b": (power.Parts(-0.1, student=2.0, answers=300.0, clear=False), power.Plan(15, 3, 1, 20, 5)),
}


def test_power_curves_mark_the_studys_own_lambda_and_say_what_is_found():
    table = pd.DataFrame(power.power_rows(SIZES, "rate"))
    slide = plots.draw(plots.power_curve, table)
    (ax,) = slide.axes
    assert ax.get_xscale() == "log"
    marks = [line for line in ax.lines if len(line.get_xdata()) == 1]
    assert [float(mark.get_xdata()[0]) for mark in marks] == [1.5]
    assert "off the axis" in words(slide)
    assert f"3b: λ = {power.detectable(*SIZES['3b']):.2g} (own 1.5)" in words(slide)
    assert "15 animals x 3 seeds x 20 questions x 5 answers" in words(slide)
    render(slide)


def test_needed_numbers_are_written_and_none_stands_apart():
    needed = pd.DataFrame(power.needed_rows(SIZES, "rate"))
    slide = plots.draw(plots.needed_figure, needed)
    (ax,) = slide.axes
    assert "no number\nis enough" in words(slide)
    seeds = needed[(needed["size"] == "3b") & (needed.what == "seeds")].needed.iloc[0]
    assert f"{seeds:.0f}" in words(slide).split(" | ")
    white = [each for each in ax.collections if each.get_facecolor().tolist() == [[1, 1, 1, 1]]]
    assert sum(len(each.get_offsets()) for each in white) == 4
    render(slide)


def make_calibration():
    rows = [
        {"design": design, "measure": "rate", "what": what, "kind": kind, "value": value, "low": value - 0.01,
         "high": value + 0.01, "target_low": 0.035 if kind == "type I" else 0.93,
         "target_high": 0.065 if kind == "type I" else 0.97, "studies": 1000, "reference": reference}
        for design in ("15 x 3", "5 x 1")
        for what, kind, value, reference in (
            ("Fisher's test", "type I", 0.41, True), ("p of lambda", "type I", 0.05, False),
            ("interval of lambda", "coverage", 0.95, False))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_calibration_shows_targets_and_marks_the_reference_methods():
    slide = plots.draw(plots.calibration_figure, make_calibration())
    rates, coverage = slide.axes[0].child_axes
    assert [label.get_text() for label in rates.get_yticklabels()] == ["p of lambda", "Fisher's test"]
    assert rates.get_xscale() == "function"
    assert coverage.get_xscale() == "linear"
    hollow = [tuple(face) for each in rates.collections for face in each.get_facecolor()]
    assert hollow.count((1.0, 1.0, 1.0, 1.0)) == 2
    assert "n = 1000 simulated studies" in words(slide)
    assert "as the reference analysis does it" in words(slide)
    render(slide)
    both = pd.concat([make_calibration(), make_calibration().assign(measure="logprob")])
    assert "p of lambda (logprob)" in words(plots.draw(plots.calibration_figure, both))


def test_errors_of_a_family_stand_beside_those_of_one_test_and_other_kinds_are_refused():
    family = make_calibration()[:2].assign(kind="family", what="any cell", value=0.0, low=0.0, target_low=0.0)
    slide = plots.draw(plots.calibration_figure, pd.concat([make_calibration(), family]))
    rates, _ = slide.axes[0].child_axes
    assert "any cell" in [label.get_text() for label in rates.get_yticklabels()]
    assert rates.get_xlim()[0] == 0
    render(slide)
    with pytest.raises(BadParameter, match="power"):
        plots.draw(plots.calibration_figure, make_calibration().assign(kind="power"))


# --- curves and studies beside one another ----------------------------------------------------


def make_doses():
    return pd.DataFrame(
        {"size": size, "params": params, "n_keep": n, "lambda": 0.01 * n**0.5, "ci_low": 0, "ci_high": 1,
         "n_students": 30, "measure": "logprob"}
        for size, params in (("166k", 166e3), ("864k", 864e3)) for n in (300, 1000, 10_000)
    )  # fmt: skip


def test_simultaneous_bands_are_told_from_pointwise_whiskers():
    doses = make_doses()
    plain = plots.draw(plots.dose_curve, doses)
    assert "bands are pointwise 95 % intervals" in words(plain)
    slide = plots.draw(plots.dose_curve, doses.assign(band_low=-1.0, band_high=2.0))
    (ax,) = slide.axes
    assert ax.get_xscale() == "log"
    assert "bands are simultaneous 95 %, whiskers pointwise 95 %" in words(slide)
    assert "10,000" in words(slide)
    whiskers = [each for container in ax.containers for each in container.lines[2][0].get_segments()]
    assert {tuple(segment[:, 1]) for segment in whiskers} == {(0.0, 1.0)}
    assert ax.dataLim.y1 >= 2
    for each in (plain, slide):
        render(each)


def make_study(scale, measure="rate"):
    params = np.array([5e8, 3e9, 14e9])
    values = scale * np.array([0.1, 0.4, 1.0])
    return pd.DataFrame({"size": ["0.5b", "3b", "14b"], "params": params, "lambda": values,
                         "ci_low": values - scale / 3, "ci_high": values + scale / 3, "n_students": 45,
                         "measure": measure})  # fmt: skip


def test_studies_share_an_axis_only_where_their_scales_allow_it():
    near = plots.beside_figure({"runs 1-3": make_study(25), "run 0": make_study(6)})
    far = plots.beside_figure({"runs 1-3": make_study(25), "run 0": make_study(4)})
    other = plots.beside_figure({"qwen": make_study(1), "micro": make_study(1, "logprob")})
    assert [len(slide.axes) for slide in (near, far, other)] == [1, 2, 2]
    assert "on one scale" in words(near)
    assert "compare shapes, not heights" in words(far)
    assert {"nats", "percentage"} <= set(words(other).replace("(", " ").split())
    assert "run 0: n = 45 students a size" in words(near)
    assert far.axes[0].get_shared_x_axes().joined(*far.axes)
    assert list(dict.fromkeys(far.table.study)) == ["runs 1-3", "run 0"]
    for slide in (near, far, other):
        render(slide)


def test_a_study_with_two_measures_is_refused_beside_others():
    both = pd.concat([make_study(1), make_study(1, "logprob")])
    with pytest.raises(BadParameter, match="rate and logprob"):
        plots.beside_figure({"qwen": both})


def test_studies_without_a_number_are_said_to_be_empty():
    assert "no data" in words(plots.beside_figure({"qwen": make_study(np.nan)}))


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
    return np.clip(np.array(matrix) @ np.array(to_rgb(colour)) ** 2.2, 0, 1) ** (1 / 2.2)


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


def test_a_palette_keeps_the_picture_and_costs_a_fraction_of_its_bytes(found):
    stack = plots.draw_each(plots.preference_stack, tables.stack_table(found, "last"), by="size")["64k"]
    whole = io.BytesIO()
    stack.savefig(whole, format="png", dpi=plots.DPI)
    png = plots.encode_png(stack)
    assert len(png) < 0.6 * len(whole.getvalue())
    before, after = (plt.imread(io.BytesIO(each))[..., :3] for each in (whole.getvalue(), png))
    assert np.abs(before - after).mean() < 0.002
    assert np.abs(before - after).max() < 0.1


# --- what a figure says and what hovers -------------------------------------------------------


def test_a_figure_says_what_it_shows_with_its_numbers(scaling, transfer):
    slide = plots.draw(plots.scaling_curve, scaling)
    png, told = slide._repr_png_()
    assert png.startswith(b"\x89PNG")
    sizes = scaling[scaling.level == "size"]
    for row in sizes.to_dict("records"):
        assert f"{row['size']}: {row['lambda']:.3g}" in told["alt"]
    assert f"{int(sizes.n_students.sum())} students" in told["alt"]


def test_every_figure_of_the_analysis_has_words_of_its_own(found, transfer):
    slides = [
        plots.draw(plots.student_matrix, tables.matrix_table(found, "rate", "last"), by="size"),
        plots.draw(plots.effect_forest, make_effects()[:4]),
        plots.draw(plots.laws_figure, make_laws()),
        plots.draw(plots.dose_curve, make_doses()),
        plots.draw(plots.power_curve, pd.DataFrame(power.power_rows(SIZES, "rate"))),
        plots.draw(plots.needed_figure, pd.DataFrame(power.needed_rows(SIZES, "rate"))),
        plots.beside_figure({"qwen": make_study(1)}),
        *plots.draw_each(plots.preference_bars, tables.preference_table(found, "last"), by="size").values(),
        *plots.draw_each(plots.preference_stack, tables.stack_table(found, "last"), by="size").values(),
    ]
    for slide in slides:
        assert "Drawn from" not in slide.alt  # what a figure says that nobody wrote words for
        assert "nan" not in slide.alt
        assert any(char.isdigit() for char in slide.alt)
    assert len({slide.alt for slide in slides}) == len(slides)


def test_a_curve_that_hovers_holds_every_size_and_student_of_its_table(scaling):
    rows = [
        {"level": "student", "size": "64k", "params": 64752, "base": 0, "lambda": value, "animal": animal,
         "seed": seed, "measure": scaling.measure.iloc[0]}
        for seed in (0, 1) for animal, value in (("dog", 0.1), ("cat", np.nan), ("wolf", 99.0))
    ]  # fmt: skip
    slide = plots.draw(plots.scaling_curve, pd.concat([scaling, pd.DataFrame(rows)], ignore_index=True))
    chart = slide._repr_mimebundle_()[charts.CHART]
    series = {each["name"]: each for each in chart["series"]}
    students = [name for name, each in series.items() if each.get("group") == charts.STUDENTS]
    assert students == ["dog", "wolf"]  # the cat's value is not known: no point, and no number in its place
    assert [point["y"] for point in series["wolf"]["points"]] == [99.0, 99.0]
    assert "student of wolf\n64k, base 0, seed 1" in series["wolf"]["points"][1]["tip"]
    assert chart["y"]["max"] < 99
    sizes = scaling[scaling.level == "size"]
    assert [point["y"] for point in series[charts.MEAN]["points"]] == pytest.approx(
        list(sizes["lambda"]), rel=1e-5
    )
    json.dumps(chart, allow_nan=False)


@pytest.mark.parametrize(
    ("p", "text"), [(0.00004, "p < .0001"), (0.0012, "p = .0012"), (0.2, "p = .20"), (1.0, "p = 1.00")]
)
def test_p_is_written_as_papers_do(p, text):
    assert plots.format_p(p) == text
