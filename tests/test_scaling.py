"""lib.scaling, lib.trend and lib.lawcheck against planted laws, brute force, scipy and simulated studies."""

import dataclasses
import math
import time

import numpy as np
import pytest
from published_runs import PUBLISHED, needs_published
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from lib import lawcheck, scaling, trend

X = np.array(lawcheck.PUBLISHED_X)
SEVEN, _, THREE, _ = lawcheck.DESIGNS
TRUTHS = {
    scaling.NONE: [4.0],
    scaling.LINE: [5.0, 4.0],
    scaling.POWER: [20.0, 0.8],
    scaling.LOGISTIC: [20.0, 9.8, 0.1],
    scaling.BUMP: [25.0, 10.0, 0.3],
    scaling.STEP: [1.0, 12.0, 9.7],
}


def make_points(truth, seed=0, noise=0.3, animals=8, seeds=2, x=X, bases=1):
    """Terms about a curve; `noise` by size or the same for all."""
    rng = np.random.default_rng(seed)
    rows = []
    for s, centre in enumerate(truth):
        for base in range(bases):
            for _ in range(seeds):
                terms = centre + np.broadcast_to(noise, len(x))[s] * rng.normal(size=animals)
                rows.append((x[s], s, f"{s}-{base}", terms, tuple(range(animals))))
    return scaling.Points(*(list(each) for each in zip(*rows, strict=True)))


def follow(name, x=X):
    law = scaling.BY_NAME[name]
    return scaling.curve(law, np.array(TRUTHS[name]), x, x)[0]


# --- points and their noise -------------------------------------------------------------------


def test_points_must_fit_together():
    with pytest.raises(ValueError, match="as long as each other"):
        scaling.Points(np.zeros(2), [0], [0], (np.zeros(3),), (("a", "b", "c"),))
    with pytest.raises(ValueError, match="one per animal"):
        scaling.Points(np.zeros(1), [0], [0], (np.zeros(3),), (("a", "b"),))
    with pytest.raises(ValueError, match="several numbers of parameters"):
        scaling.Points(np.arange(2.0), [0, 0], [0, 1], (np.zeros(2),) * 2, (("a", "b"),) * 2)


def test_a_base_is_the_mean_of_its_blocks_and_its_noise_that_of_its_animals():
    rng = np.random.default_rng(1)
    animals = rng.normal(0, 9, 400)
    values = tuple(animals + rng.normal(0, 3, 400) for _ in range(2))
    points = scaling.Points([8.0, 8.0], [0, 0], ["b", "b"], values, (tuple(range(400)),) * 2)
    units = scaling.summarise(points)
    assert units.y == pytest.approx([np.mean(values)])
    assert units.estimated[0, 0] == pytest.approx((81 + 4.5) / 400, rel=0.2)
    assert units.average @ points.means == pytest.approx(units.y)


def test_no_size_is_taken_to_be_without_noise():
    points = make_points(follow(scaling.NONE), noise=[0, 1, 1, 1, 1, 1, 1])
    assert (np.diag(scaling.summarise(points).noise) > 1e-5).all()
    with pytest.raises(ValueError, match="no noise"):
        scaling.summarise(make_points(np.arange(7.0), noise=0))


def test_noise_estimates_are_as_large_as_the_means_really_stray():
    for design in (*lawcheck.DESIGNS[:2], dataclasses.replace(SEVEN, bases=3)):
        rng, strays = np.random.default_rng(5), []
        for _ in range(300):
            units = scaling.summarise(lawcheck.draw_points(design, scaling.LAWS[0], np.array([5.0]), rng))
            strays.append([(units.y - 5) ** 2, np.diag(units.estimated)])
        real, said = np.mean(strays, axis=(0, 2))
        assert said == pytest.approx(real, rel=0.12), design.name


def test_bases_of_one_size_share_the_luck_of_their_animals():
    rng = np.random.default_rng(3)
    rows = []
    for s, x in enumerate((6.0, 7.0, 8.0)):
        shared = rng.normal(0, 3, 30)
        rows += [(x, s, (s, b), shared + rng.normal(0, 1, 30), tuple(range(30))) for b in range(2)]
    noise = scaling.summarise(scaling.Points(*(list(e) for e in zip(*rows, strict=True)))).estimated
    assert noise[0, 1] / noise[0, 0] == pytest.approx(0.9, abs=0.06)
    assert noise[0, 2] == 0


# --- fits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRUTHS)
def test_a_law_is_found_again_where_there_is_next_to_no_noise(name):
    law, truth = scaling.BY_NAME[name], follow(name)
    theta, loss = scaling.fit_law(law, X, truth, np.eye(7) * 100, starts=6)
    assert loss[0] < 1e-4
    assert scaling.curve(law, theta, X, X)[0] == pytest.approx(truth, abs=1e-3)


@pytest.mark.parametrize("name", [scaling.POWER, scaling.LOGISTIC, scaling.BUMP])
def test_no_fit_is_worse_than_what_many_starts_of_scipy_find(name):
    law, rng = scaling.BY_NAME[name], np.random.default_rng(7)
    grid = law.grid(X)
    for trial in range(4):
        sd = rng.uniform(0.3, 5, 7)
        y = follow(list(TRUTHS)[trial + 1]) + sd * rng.normal(size=7)
        _, loss = scaling.fit_law(law, X, y, np.diag(1 / sd), starts=6)

        def miss(theta, y=y, sd=sd):
            return float((((y - scaling.curve(law, theta, X, X)[0]) / sd) ** 2).sum())

        found = []
        for start in grid[rng.integers(len(grid), size=25)]:
            same = grid[np.sign(grid[:, -1]) == np.sign(start[-1])]  # a width or exponent keeps its sign
            bounds = [(0, 200), *zip(same.min(0), same.max(0), strict=True)]
            found.append(minimize(miss, [10, *start], bounds=bounds, method="L-BFGS-B").fun)
        assert loss[0] <= min(found) + 0.01


def test_many_rows_are_fitted_as_each_would_be_alone():
    rng = np.random.default_rng(2)
    y = follow(scaling.BUMP) + rng.normal(size=(20, 7))
    for law in scaling.LAWS:
        _, together = scaling.fit_law(law, X, y, np.eye(7))
        alone = [scaling.fit_law(law, X, row, np.eye(7))[1][0] for row in y]
        assert together == pytest.approx(alone, rel=1e-6)


def test_six_laws_on_seven_points_take_milliseconds_and_draws_go_together():
    rng = np.random.default_rng(2)
    draws = follow(scaling.BUMP) + rng.normal(size=(1000, 7))
    fit_all(draws[:1])
    alone = min(clock(lambda: fit_all(draws[:1])) for _ in range(5))
    together = clock(lambda: fit_all(draws))
    assert alone < 0.05
    assert together < 0.1 * 1000 * alone


def fit_all(y):
    for law in scaling.LAWS:
        scaling.fit_law(law, X, y, np.eye(7))


def clock(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# --- evidence ---------------------------------------------------------------------------------


def test_evidence_is_the_likelihood_averaged_over_draws_from_the_prior():
    rng = np.random.default_rng(4)
    y, noise = np.array([0.5, 2.0, 6.0, 3.0]), np.diag([1.0, 1.0, 4.0, 2.0])
    x = X[[0, 2, 4, 6]]
    for law in scaling.LAWS:
        shapes = scaling.prior_shapes(law, x)
        assert shapes.max() <= 1 + 1e-9
        n = 400_000
        scale = rng.choice(scaling.AMPLITUDES, n) * np.abs(y).max()
        curves = np.abs(rng.normal(size=n) * scale)[:, None] * shapes[rng.integers(len(shapes), size=n)]
        drawn = multivariate_normal(np.zeros(4), noise).pdf(y - curves).mean()
        found = scaling.log_evidence(law, x, y, [noise])[0] + 2 * -math.log(2 * math.pi)
        assert math.exp(found) == pytest.approx(drawn, rel=0.03), law.name


def test_weights_do_not_depend_on_the_unit():
    points = make_points(follow(scaling.POWER), noise=4.0)
    scaled = dataclasses.replace(points, values=tuple(each / 1000 for each in points.values))
    first, second = (scaling.compare_laws(each) for each in (points, scaled))
    for one, other in zip(first.fits, second.fits, strict=True):
        assert one.weight == pytest.approx(other.weight, abs=1e-6)


def test_the_weight_is_how_often_the_chosen_law_is_the_true_one():
    rng = np.random.default_rng(20)
    for design in (SEVEN, THREE):
        rows = lawcheck.simulate_laws(design, 300, rng)
        weight = np.mean([row.weight for row in rows])
        right = np.mean([row.right for row in rows])
        assert abs(weight - right) < 0.08, design.name


# --- comparison -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRUTHS)
def test_a_planted_law_is_chosen_and_fits(name):
    compared = scaling.compare_laws(make_points(follow(name), seed=3))
    assert compared.chosen.law == name
    assert compared[name].p_fit > 0.01
    assert sum(fit.weight for fit in compared.fitted) == pytest.approx(1)
    assert compared[name].chi_square == pytest.approx(min(fit.chi_square for fit in compared.fitted), abs=8)


def test_a_law_with_as_many_parameters_as_sizes_is_not_fitted_and_says_why():
    three = [0, 3, 6]
    compared = scaling.compare_laws(make_points(follow(scaling.LINE)[three], x=X[three]))
    assert [fit.law for fit in compared.fitted] == [scaling.NONE, scaling.LINE, scaling.POWER]
    assert compared[scaling.BUMP].note == "3 parameters need more than 3 sizes: not fitted"
    assert math.isnan(compared[scaling.BUMP].weight)


def test_aicc_and_likelihood_are_those_of_the_normal_law():
    points = make_points(follow(scaling.LINE), noise=2.0)
    compared = scaling.compare_laws(points)
    fit, units = compared[scaling.LINE], compared.units
    mean = scaling.curve(scaling.BY_NAME[scaling.LINE], fit.theta, X, X)[0]
    assert fit.loglik == pytest.approx(multivariate_normal(mean, units.noise).logpdf(units.y))
    students = 7 * 2 * 8
    assert fit.aicc == pytest.approx(-2 * fit.loglik + 4 + 12 / (students - 3))


def test_a_size_left_out_is_predicted_by_the_law_that_holds():
    compared = scaling.compare_laws(make_points(follow(scaling.LINE), noise=0.5))
    assert compared[scaling.LINE].error < 0.6
    assert compared[scaling.LINE].density > compared[scaling.NONE].density + 1


def test_the_spread_between_bases_is_found_where_a_size_has_several():
    rng = np.random.default_rng(6)
    design = dataclasses.replace(SEVEN, bases=4, spread=6.0, noise=(2.0,) * 7)
    points = lawcheck.draw_points(design, scaling.BY_NAME[scaling.LINE], np.array([20.0, 15.0]), rng)
    compared = scaling.compare_laws(points)
    assert compared[scaling.LINE].spread == pytest.approx(6, abs=2)
    assert compared[scaling.LINE].k == 3
    assert math.isnan(compared.tipping)
    assert "estimated" in compared.statement


def test_one_base_per_size_leaves_the_spread_open_and_the_tipping_value_says_how_far():
    compared = scaling.compare_laws(make_points(follow(scaling.LINE), noise=1.0))
    assert all(fit.spread == 0 for fit in compared.fits)
    students = 7 * 2 * 8
    for spread, better in ((compared.tipping * 1.02, False), (compared.tipping * 0.9, True)):
        scores = {
            law.name: scaling.correct_aic(
                scaling.score_fit(law, compared.units, spread, 6)[0], law.k, students
            )
            for law in scaling.LAWS
        }
        assert (scores[scaling.NONE] - min(scores.values()) > scaling.AICC_TIE) == better
    assert "these bases" in compared.statement
    assert "a seed has in common" not in compared.statement
    flat = scaling.compare_laws(make_points(np.full(7, 3.0), noise=5.0, seed=1, seeds=1))
    assert flat.tipping == 0
    assert "what a seed has in common counts as nothing" in flat.statement


# --- trend ------------------------------------------------------------------------------------


def test_a_trend_is_found_and_its_slope_is_per_tenfold_size():
    points = make_points(2 + 5 * (X - X[0]), noise=1.0)
    for test in (trend.permute_bases(points), trend.flip_animals(points)):
        assert test.slope == pytest.approx(5, abs=0.6)
        assert test.p < 0.01


def test_no_p_is_given_where_none_could_be_small():
    few = make_points(follow(scaling.LINE)[[0, 3, 6]], x=X[[0, 3, 6]], animals=5)
    bases, animals = trend.permute_bases(few), trend.flip_animals(few)
    assert math.isnan(bases.p)
    assert "3 bases: the smallest p there could be is 0.25" in bases.note
    assert math.isnan(animals.p)
    assert "5 animals" in animals.note


def test_contrasts_are_free_of_the_constant_and_carry_the_slope():
    rng = np.random.default_rng(8)
    variance = rng.uniform(0.1, 50, 7)
    flat, _ = trend.find_contrasts(X, np.full(7, 9.0), variance)
    assert flat == pytest.approx(np.zeros(6), abs=1e-9)
    rise, weights = trend.find_contrasts(X, X, variance)
    assert rise / np.linalg.norm(rise) == pytest.approx(weights)
    spread = np.array([trend.find_contrasts(X, row, variance)[0] for row in np.diag(np.sqrt(variance))])
    assert spread.T @ spread == pytest.approx(np.eye(6), abs=1e-9)


def test_orders_and_signs_are_all_there_and_exact_p_is_their_share():
    null, exact = trend.permute_signed(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0]), 10, None)
    assert exact
    assert len(null) == 48
    assert null.max() == 17
    assert sorted(null) == pytest.approx(sorted(-null))


@pytest.mark.parametrize("design", lawcheck.TREND_DESIGNS[:5:4], ids=lambda design: design.name)
def test_a_trend_is_claimed_in_one_of_twenty_studies_without_one(design):
    shares = lawcheck.simulate_trend(design, 400, np.random.default_rng(9), draws=400)
    for name, share in shares.items():
        if name == "bases" or not design.spread:
            assert 0.02 < share < 0.085, name  # three standard errors about .035 to .065


# --- bands and the peak -----------------------------------------------------------------------


def draws_of(points, count=400, seed=0):
    return lawcheck.bootstrap_means(points, count, np.random.default_rng(seed))


def test_draws_are_as_wide_as_the_noise_and_centred_on_the_data():
    points = make_points(follow(scaling.LINE), noise=3.0, animals=12, seeds=3)
    units = scaling.summarise(points)
    stretched = scaling.stretch_draws(units, draws_of(points, 4000))
    assert stretched.mean(0) == pytest.approx(units.y, abs=1e-6)
    assert stretched.std(0) == pytest.approx(np.sqrt(np.diag(units.noise)), rel=0.05)
    wider = scaling.stretch_draws(units, draws_of(points, 4000), spread=4.0)
    assert wider.var(0) == pytest.approx(np.diag(units.noise) + 16, rel=0.1)


def test_what_sizes_have_in_common_stays_in_the_draws():
    rng = np.random.default_rng(3)
    shared = rng.normal(0, 3, 40)
    values = tuple(shared + rng.normal(0, 1, 40) for _ in X)
    points = scaling.Points(X, list(range(7)), list(range(7)), values, (tuple(range(40)),) * 7)
    stretched = scaling.stretch_draws(scaling.summarise(points), draws_of(points, 4000))
    assert np.corrcoef(stretched.T)[0, 1:] == pytest.approx(np.full(6, 0.9), abs=0.08)


def test_draws_that_do_not_fit_the_points_are_refused():
    points = make_points(follow(scaling.LINE))
    with pytest.raises(ValueError, match="100 rows of 14 points"):
        scaling.stretch_draws(scaling.summarise(points), np.zeros((200, 7)))


@pytest.mark.parametrize("name", [scaling.POWER, scaling.BUMP])
def test_a_band_holds_the_true_curve_as_often_as_it_says(name):
    cover = lawcheck.simulate_bands(SEVEN, scaling.BY_NAME[name], 120, np.random.default_rng(8), count=200)
    assert 0.90 < cover.mean < 0.995  # .93 to .97 and what 120 studies leave open


def test_bands_of_every_law_and_of_their_mean():
    points = make_points(follow(scaling.BUMP), noise=1.0, animals=12)
    compared, grid = scaling.compare_laws(points), np.linspace(X[0], X[-1], 9)
    bands = {band.law: band for band in scaling.draw_bands(compared, draws_of(points), grid)}
    assert set(bands) == {*TRUTHS, scaling.MEAN}
    truth = scaling.curve(scaling.BY_NAME[scaling.BUMP], np.array(TRUTHS[scaling.BUMP]), grid, X)[0]
    for name in (scaling.BUMP, scaling.MEAN):
        assert (bands[name].low - 0.01 <= truth).mean() > 0.7
        assert (bands[name].low <= bands[name].high).all()
    again = scaling.draw_bands(compared, draws_of(points), grid)
    assert all((bands[band.law].high == band.high).all() for band in again)


def test_no_band_is_drawn_from_too_few_animals():
    points = make_points(follow(scaling.LINE), animals=5)
    bands = scaling.draw_bands(scaling.compare_laws(points), draws_of(points), X)
    assert all(np.isnan(band.low).all() and "5 animals" in band.note for band in bands)
    assert np.isfinite(bands[0].curve).all()


def test_a_peak_inside_has_an_interval_and_one_at_the_end_is_open():
    inside = make_points(follow(scaling.BUMP), noise=1.0)
    peak = scaling.find_peak(scaling.compare_laws(inside), draws_of(inside))
    assert peak.low < 10.0 < peak.high
    assert peak.nearest == pytest.approx(X[np.abs(X - 10).argmin()])
    assert peak.note == ""
    rising = make_points(follow(scaling.POWER), noise=10.0)
    compared = scaling.compare_laws(rising)
    peak = scaling.find_peak(compared, draws_of(rising))
    assert compared[scaling.BUMP].weight > scaling.SETTLED
    assert peak.high == math.inf
    assert "beyond the largest size cannot be excluded" in peak.note
    assert any("beyond the largest size" in said for said in scaling.state_findings(compared, peak=peak))


# --- statements -------------------------------------------------------------------------------


def test_findings_say_what_is_ruled_out_what_is_left_and_what_stays_open():
    points = make_points(follow(scaling.BUMP), noise=0.5)
    compared = scaling.compare_laws(points)
    tests = trend.permute_bases(points), trend.flip_animals(points)
    said = scaling.state_findings(compared, *tests, scaling.find_peak(compared, draws_of(points)))
    text = "\n".join(said)
    assert "Only one law is left: inverted-u" in text
    assert "A peak inside the range of sizes is supported" in text
    assert "over animals, given these bases" in text
    assert "One base per size" in said[-1]
    assert "too modest" not in text
    three = [0, 3, 6]
    few = make_points(follow(scaling.LINE)[three], x=X[three], animals=5, noise=3.0)
    compared = scaling.compare_laws(few)
    text = "\n".join(scaling.state_findings(compared, trend.permute_bases(few)))
    assert "With 3 sizes weights are too modest" in text
    assert "Not fitted, with 3 sizes: saturating, inverted-u, changepoint." in text
    assert "Trend over bases: 3 bases: the smallest p" in text


def test_the_best_of_laws_that_all_misfit_is_said_to_misfit():
    zigzag = make_points([0, 20, 0, 20, 0, 20, 0], noise=1.0)
    compared = scaling.compare_laws(zigzag)
    assert compared.chosen.p_fit < 1e-6
    assert "none of these laws holds" in scaling.state_fit(compared)


# --- the published runs -----------------------------------------------------------------------


def published_points():
    from lib.published import load_published
    from lib.stats import transfer_terms
    from lib.tables import lifts

    study = load_published(PUBLISHED, "published", "0.5b,1.5b,3b,7b,14b,32b,72b", "grid", "1,2,3")
    blocks = [block for block in lifts(study, "rate", "last") if not block.problem]
    return scaling.Points(
        np.log10([block.params for block in blocks]),
        [block.size for block in blocks],
        [block.label for block in blocks],
        tuple(transfer_terms(block.matrix.to_numpy()) for block in blocks),
        tuple(tuple(block.matrix.index) for block in blocks),
    )


@needs_published
def test_the_published_runs_rule_out_a_constant_and_settle_no_law():
    compared = scaling.compare_laws(published_points())
    assert compared[scaling.NONE].weight < scaling.SETTLED
    assert compared.chosen.weight < 0.5
    assert compared.tipping > 1
