"""predict.py: a planted predictor is found, and only that; the figure follows from the tracked table."""

import numpy as np
import pandas as pd
import pytest

import predict
from lib import files, paths, plots, store


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path))
    return tmp_path


def made_up(seed: int = 0, bases: int = 8) -> pd.DataFrame:
    """Bases whose lambda follows the named predictor; all other candidates are noise."""
    rng = np.random.default_rng(seed)
    rows = []
    for number, size in enumerate(("64k", "166k", "368k", "864k")):
        for base in range(bases):
            told = rng.normal() + 1
            row = {name: rng.normal() + 3 for name in (*predict.CANDIDATES, *predict.LATER)}
            row |= {predict.NAMED: told, "lambda": 10 - 2 * number + told + 0.1 * rng.normal(), "error": 0.1}
            row |= {
                "study": predict.TESTED,
                "size": size,
                "params": 64000 * 3**number,
                "base": base,
                "label": f"{size}-{base}",
            }
            rows.append(row | {"group": predict.GROUPS[int(base >= predict.FIRST_HELD_OUT)]})
    return pd.DataFrame(rows)


def test_the_planted_predictor_is_found_on_both_groups_of_bases():
    tests = predict.rank_candidates(made_up()).set_index("candidate")
    best = tests.loc[predict.NAMED]
    assert best.bases_explored == best.bases_held_out == 16
    assert min(best.rho_explored, best.rho_held_out) > 0.8
    assert best.p_one_sided_held_out < 0.001
    assert best.p_adjusted_held_out == tests.p_adjusted_held_out.min() < 0.05
    others = tests.drop(predict.NAMED)
    assert (others.p_adjusted_held_out > 0.05).all()
    assert others.p_one_sided_held_out.isna().all()


def test_without_held_out_bases_nothing_is_said_of_them():
    tests = predict.rank_candidates(made_up(bases=4))
    assert not [name for name in tests if "held_out" in name]
    assert predict.draw(made_up(bases=4), tests).alt


def test_transfer_per_nat_of_leak_is_a_ratio_of_means_with_an_interval_over_bases():
    rng = np.random.default_rng(3)
    leak = rng.lognormal(0, 0.5, 8)
    value, low, high = predict.compare_means(2 * leak, leak)  # what the bases share cancels
    assert (value, low, high) == pytest.approx((2, 2, 2))
    assert np.isnan(predict.compare_means(np.array([1.0, -3.0]), np.ones(2))).all()  # a mean below 0
    assert np.isnan(predict.compare_means(np.ones(1), np.ones(1))).all()  # a base alone tells no interval


# Standard deviations over means, of lambda and leak, as the ladder's bases have them at each size.
SPREADS = {"64k": (0.57, 0.57), "166k": (0.75, 0.69), "368k": (0.46, 0.86), "864k": (0.79, 1.8)}


def draw_bases(rng: np.random.Generator, size: str) -> tuple[np.ndarray, np.ndarray]:
    """lambda and leak of eight bases, both of mean 1; lambda is kept above 0, where logarithms need it."""
    of_lambda, of_leak = SPREADS[size]
    width = np.sqrt(np.log(1 + of_leak**2))
    return rng.gamma(of_lambda**-2, of_lambda**2, 8), rng.lognormal(-(width**2) / 2, width, 8)


@pytest.mark.parametrize("size", SPREADS)
def test_intervals_hold_the_truth_about_as_often_as_is_said(size: str):
    rng = np.random.default_rng(5)
    lowest, highest = (0.85, 0.93) if size == "864k" else (0.91, 0.96)
    drawn = [draw_bases(rng, size) for _ in range(1000)]
    leaks = [predict.compare_means(leak, np.ones(8)) for _, leak in drawn]
    gains = [predict.compare_means(gain, leak) for gain, leak in drawn]
    for told in (leaks, gains):
        assert lowest < np.mean([low <= 1 <= high for _, low, high in told]) < highest


def test_an_exponent_is_that_of_the_means_with_an_interval_over_bases():
    rng, inside = np.random.default_rng(6), []
    sizes = np.array([64000.0, 166000.0, 368000.0, 864000.0])
    for _ in range(300):
        drawn = np.array([draw_bases(rng, size) for size in SPREADS])
        leak = (drawn[:, 1] * sizes[:, None] ** -0.7).ravel()
        table = pd.DataFrame(dict.fromkeys(predict.SCALED, 1.0), index=range(32))
        table = table.assign(params=np.repeat(sizes, 8), leak=leak, **{"lambda": drawn[:, 0].ravel()})
        found = predict.fit_slopes(table)
        value, low, high = found["leak"]
        means = leak.reshape(4, 8).mean(1)
        assert value == pytest.approx(np.polyfit(np.log(sizes), np.log(means), 1)[0])
        inside.append((low < -0.7 < high, found[predict.PER_NAT][1] < 0.7 < found[predict.PER_NAT][2]))
    assert all(0.85 < share < 0.96 for share in np.mean(inside, axis=0)), np.mean(inside, axis=0)


def test_bases_of_two_studies_are_compared_by_name():
    ladder = made_up().head(8).assign(**{"lambda": 1.0, "leak": 2.0, "reach_adam_whole": 5.0})
    dial = ladder[ladder.base < 4].assign(study="dial", **{"lambda": [2.0, 2.2, 1.8, 2.1]})
    told = predict.pair_studies(pd.concat([ladder, dial])).set_index("quantity")
    assert set(told.study) == {"dial"} and set(told.beside) == {predict.TESTED} and set(told.bases) == {4}
    assert told.ratio["lambda"] == pytest.approx(np.prod([2.0, 2.2, 1.8, 2.1]) ** 0.25)
    assert told.ratio_low["lambda"] < told.ratio["lambda"] < told.ratio_high["lambda"]
    assert told.p["lambda"] < 0.001 and told.ratio["gain"] == pytest.approx(told.ratio["lambda"])
    assert told.ratio["leak"] == told.ratio["reach_adam_whole"] == 1
    below = dial.assign(**{"lambda": [2.0, -1.0, 1.0, 1.0]})
    assert "lambda" not in set(predict.pair_studies(pd.concat([ladder, below])).quantity)


def test_leaks_are_told_by_size():
    table = made_up()
    told = predict.tell_leaks(table)
    assert list(told["size"]) == ["64k", "166k", "368k", "864k"]
    first = table[table["size"] == "64k"]
    assert told.leak[0] == pytest.approx(first.leak.mean())
    assert told.gain[0] == pytest.approx(first["lambda"].mean() / first.leak.mean())
    assert (told.leak_low < told.leak).all() and (told.leak < told.leak_high).all()


def test_a_study_gathered_again_takes_the_place_of_its_own_rows(tmp_path):
    table, path = made_up(bases=2), tmp_path / "predictors.csv"
    assert predict.join_rows(path, table) is table
    dial = table.assign(study="dial", leak=1.0)
    files.write_text(path, predict.to_csv(predict.join_rows(path, dial)))
    files.write_text(path, predict.to_csv(predict.join_rows(path, table)))
    files.write_text(path, predict.to_csv(predict.join_rows(path, dial.assign(leak=2.0).head(3))))
    joined = pd.read_csv(path)
    assert joined.study.tolist() == [predict.TESTED] * len(table) + ["dial"] * 3
    assert joined[joined.study == "dial"].leak.tolist() == [2.0] * 3
    pd.testing.assert_frame_equal(joined.head(len(table)), table, check_dtype=False, check_like=True)


def test_candidates_written_down_beforehand_are_told_from_later_ones():
    tests = predict.rank_candidates(made_up())
    assert tests.beforehand.sum() == len(predict.CANDIDATES)
    assert not set(predict.CANDIDATES) & set(predict.LATER)


def matrices(seed: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and measured, alike to a degree, with row and column effects that nobody predicted."""
    rng = np.random.default_rng(seed)
    predicted = rng.normal(size=(15, 15))
    effects = 5 * rng.normal(size=(15, 1)) + 5 * rng.normal(size=(1, 15))
    return predicted, share * predicted + rng.normal(size=(15, 15)) + effects


def test_alike_matrices_are_told_from_unlike_ones(monkeypatch):
    monkeypatch.setattr(predict, "ORDERS", 300)
    alike = predict.compare_matrices({str(seed): matrices(seed, 1.0) for seed in range(6)})
    unlike = predict.compare_matrices({str(seed): matrices(seed, 0.0) for seed in range(6)})
    for part in ("terms", "others"):
        assert alike[part][0] == pytest.approx(0.7, abs=0.15)
        assert alike[part][1] < 0.01
        assert abs(unlike[part][0]) < 0.2
        assert unlike[part][1] > 0.01


def test_gathering_puts_both_matrices_in_one_order_of_animals(monkeypatch):
    rng = np.random.default_rng(1)
    names = ["dog", "cat", "wolf", "fox"]  # the study's order, and another one in the document
    measured = rng.normal(size=(4, 4))
    order = [2, 0, 3, 1]
    document = {
        "config": {"n_raw": 40},
        "lineage": {},
        "animals": [names[at] for at in order],
        "matrices": dict.fromkeys(predict.FORMS, measured[np.ix_(order, order)].tolist()),
        "numbers": dict.fromkeys((*predict.CANDIDATES, *predict.LATER), 1.0),
    }
    for label in ("64k", "64k-5"):
        files.write_json(paths.results("toy") / label / "predictors.json", store.seal(document))
    bases = pd.DataFrame(
        {
            "label": ["64k", "64k-5"],
            "size": "64k",
            "params": 64176,
            "base": [0, 5],
            "lambda": 0.1,
            "error": 0.01,
        }
    ).set_index("label")
    lifts = dict.fromkeys(bases.index, measured)
    monkeypatch.setattr(predict, "measure_lifts", lambda study, labels: (bases, lifts))
    assert predict.gather("toy")[0].group.tolist() == ["", ""]  # nobody explored or held out these
    monkeypatch.setattr(predict, "TESTED", "toy")
    table, pairs = predict.gather("toy")
    assert table.group.tolist() == ["explored", "held out"]
    assert table.terms_adam_whole.tolist() == pytest.approx([1, 1])
    for own in pairs.values():
        for predicted, found in own.values():
            np.testing.assert_allclose(predicted, found)
    monkeypatch.setattr(predict, "ORDERS", 20)
    matched = predict.match_matrices(table, pairs)
    assert len(matched) == len(predict.FORMS) * 2 * 2  # groups, parts
    assert matched.correlation.tolist() == pytest.approx([1] * len(matched))


def test_a_study_without_predictions_is_told_what_to_run(capsys):
    assert predict.main(["--study", "toy"]) == 1
    assert "run 07_predict for its bases first" in capsys.readouterr().err


def test_table_and_figure_follow_from_the_tracked_table(root, capsys):
    files.write_text(paths.benchmarks() / predict.TABLE, made_up().to_csv(index=False))
    assert predict.main([]) == 0
    assert predict.NAMED in capsys.readouterr().out
    assert (root / "figures" / "predictors.png").stat().st_size > 20_000
    drawn = pd.read_csv(root / "figures" / "predictors.csv")
    assert len(drawn) == 32
    tests = pd.read_csv(root / "benchmarks" / predict.TESTS)
    assert len(tests) == len(predict.CANDIDATES) + len(predict.LATER)


def test_exponents_over_sizes_are_those_of_the_means():
    table = made_up()
    table["lambda"] = table.params**-0.75
    table["leak"] = table.params**0.5 * np.random.default_rng(2).lognormal(size=len(table))
    table[predict.NAMED] = np.where(table["size"] == "368k", -1.0, 1.0)
    slopes = predict.fit_slopes(table)
    assert slopes["lambda"] == pytest.approx((-0.75, -0.75, -0.75))
    assert slopes["leak"][1] < slopes["leak"][0] < slopes["leak"][2]
    assert predict.NAMED not in slopes


def test_the_slide_has_the_house_size():
    slide = predict.draw(made_up(), predict.rank_candidates(made_up()))
    assert tuple(slide.get_size_inches()) == plots.INCHES


def test_exponents_are_told_without_a_base_and_nothing_is_written(root, capsys):
    table = made_up()
    files.write_text(paths.benchmarks() / predict.TABLE, table.to_csv(index=False))
    assert predict.main(["--without", "64k-3"]) == 0
    said = capsys.readouterr().out
    slope, *_ = predict.fit_slopes(table[table.label != "64k-3"])["leak"]
    assert f"leak: exponent {slope:+.2f}" in said
    assert [path.name for path in root.rglob("*.*")] == [predict.TABLE]
    assert predict.main(["--without", "64k-9"]) == 1
    assert "'64k-9' is no base of ladder" in capsys.readouterr().err
