"""Crowds: the local curve, Stein's rule, and what a spread consists of."""

import math

import numpy as np
import pytest
from scipy import stats

from analysis.statistics import crowds, ratio
from analysis.statistics.crowds import Curve

STEP = math.log(2) / 2
LADDER = math.log(1000) + STEP * np.arange(-4, 5)


def bent(log_steps):
    """A curve whose exponent grows."""
    return -0.3 * (log_steps - LADDER[4]) - 0.05 * (log_steps - LADDER[4]) ** 2


def noisy(seed, spread=0.05):
    rng = np.random.default_rng(seed)
    return Curve(LADDER, bent(LADDER) + spread * rng.normal(size=len(LADDER)))


@pytest.mark.parametrize("at", [LADDER[1], LADDER[4], LADDER[4] + 0.1, LADDER[6] - 0.05])
def test_a_quadratic_is_recovered(at):
    curve = Curve(LADDER, bent(LADDER))
    assert curve.value_at(at) == pytest.approx(bent(at), abs=1e-9)
    assert curve.exponent_at(at) == pytest.approx(0.3 + 0.1 * (at - LADDER[4]), rel=1e-9)
    assert curve.steps_at(bent(at)) == pytest.approx(at, abs=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_the_curve_falls_through_the_quality_where_it_is_said_to(seed):
    curve = noisy(seed, 0.02)
    at = curve.steps_at(-0.05)
    assert curve.value_at(at) == pytest.approx(-0.05, abs=1e-9)
    assert curve.exponent_at(at) > 0
    slope = (curve.value_at(at + 1e-6) - curve.value_at(at - 1e-6)) / 2e-6
    assert curve.exponent_at(at) == pytest.approx(-slope, rel=1e-6)


def test_only_rungs_nearby_count_and_each_with_its_blocks():
    curve = noisy(0)
    far = Curve(LADDER, curve.log_metric + 9 * (np.abs(LADDER - LADDER[4]) > math.log(2.1)))
    assert far.exponent_at(LADDER[4]) == curve.exponent_at(LADDER[4])
    near = slice(2, 7)
    weights = np.arange(1.0, 10.0)
    fit = np.polyfit(LADDER[near], curve.log_metric[near], 2, w=np.sqrt(weights[near]))
    weighted = Curve(LADDER, curve.log_metric, weights)
    assert weighted.value_at(LADDER[4]) == pytest.approx(np.polyval(fit, LADDER[4]), abs=1e-9)


def test_few_rungs_are_the_nearest_three_and_two_are_none():
    sparse = Curve(LADDER[::4], bent(LADDER[::4]))
    assert sparse.exponent_at(LADDER[4]) == pytest.approx(0.3, rel=1e-9)
    with pytest.raises(ValueError, match="a curve of 2 rungs"):
        Curve(LADDER[:2], bent(LADDER[:2])).exponent_at(LADDER[0])


def test_beyond_the_rungs_there_are_no_steps():
    curve = Curve(LADDER, bent(LADDER))
    assert curve.steps_at(bent(LADDER[0]) + 0.01) is None
    assert curve.steps_at(bent(LADDER[-1]) - 0.01) is None


def test_of_several_crossings_that_of_the_most_steps_counts():
    """As in matched quality. A curve that comes back and falls again."""
    curve = Curve(STEP * np.arange(9), np.array([2, 1, 0, 1, 2, 3, 2, 1, 0.0]))
    assert STEP * 6 < curve.steps_at(1.5) < STEP * 7
    rising = Curve(STEP * np.arange(5), np.arange(5.0))
    assert rising.steps_at(1.5) is None
    assert rising.exponent_at(STEP) < 0


def test_a_rung_of_more_blocks_is_the_mean_of_all():
    curve = noisy(1)
    extended = curve.with_rung(LADDER[3], 0.7, 6)
    assert extended.log_metric[3] == pytest.approx((curve.log_metric[3] + 6 * 0.7) / 7)
    assert extended.blocks[3] == 7
    apart = curve.with_rung(LADDER[3] + 1e-6, 0.7, 6)
    assert len(apart.log_steps) == len(LADDER) + 1
    assert (np.diff(apart.log_steps) > 0).all()
    assert apart.exponent_at(LADDER[4]) == pytest.approx(extended.exponent_at(LADDER[4]), rel=1e-3)


def test_the_exponents_error_is_that_of_many_curves():
    exponents = [noisy(seed).exponent_at(LADDER[4]) for seed in range(4000)]
    assert noisy(0).exponent_error(LADDER[4], 0.05) == pytest.approx(np.std(exponents), rel=0.04)


def test_the_log_times_of_a_power_law_are_exact():
    """Whatever the horizon that the students ran to."""
    ends = -0.25 * np.log([[500.0, 500.0], [500.0, 500.0]]) + np.array([[0.1, -0.1], [0.05, 0.15]])
    quality = -0.25 * math.log(800)
    times = crowds.log_times(ends, math.log(500), quality, 0.25)
    assert times == pytest.approx([math.log(800), math.log(800) + 0.1 / 0.25])
    with pytest.raises(ValueError, match="must be above 0"):
        crowds.log_times(ends, math.log(500), quality, 0.0)


def test_what_a_wrong_exponent_does_is_the_aiming_error():
    at, quality = math.log(500), -0.25 * math.log(800)
    ends = np.full((6, 8), -0.25 * at)
    right, wrong = (crowds.log_times(ends, at, quality, s) for s in (0.25, 0.26))
    error = crowds.aiming_error(right, np.full(6, at), 0.25, 0.01)
    assert error == pytest.approx(abs(wrong.mean() - right.mean()), rel=0.05)


def test_the_mean_of_a_pilot_alone_has_students_interval():
    logs = np.random.default_rng(0).normal(0.1, 0.2, 6)
    found, expected = crowds.two_stage(logs, 6), ratio.geometric_mean(np.exp(logs))
    assert found[:5] == pytest.approx(expected[:5], rel=1e-9)


def test_the_spread_of_the_main_blocks_does_not_count():
    """Stein's rule; the estimate is that of all."""
    rng = np.random.default_rng(1)
    pilot, main = rng.normal(0, 0.1, 6), rng.normal(0, 0.1, 30)
    found = crowds.two_stage([*pilot, *main], 6)
    wider = crowds.two_stage([*pilot, *(main.mean() + 5 * (main - main.mean()))], 6)
    assert found[:5] == pytest.approx(wider[:5], rel=1e-9)
    half = stats.t.ppf(0.975, 5) * pilot.std(ddof=1) / 6
    assert math.log(found.high / found.value) == pytest.approx(half)
    assert math.log(found.value) == pytest.approx(np.mean([*pilot, *main]))
    assert found.n == 36


def test_two_sides_of_a_comparison_are_each_others_inverse():
    logs = np.random.default_rng(2).normal(0.1, 0.2, 12)
    forth, back = crowds.two_stage(logs, 6), crowds.two_stage(-logs, 6).inverse()
    assert forth[:5] == pytest.approx(back[:5], rel=1e-9)


def test_an_error_that_no_block_shows_widens_in_quadrature():
    logs = np.random.default_rng(3).normal(0, 0.1, 9)
    plain, aimed = crowds.two_stage(logs, 6), crowds.two_stage(logs, 6, 0.04)
    t = stats.t.ppf(0.975, 5)
    halves = [math.log(found.high / found.value) / t for found in (plain, aimed)]
    assert halves[1] == pytest.approx(math.hypot(halves[0], 0.04))


@pytest.mark.parametrize("pilot", [2, 7])
def test_a_pilot_is_of_three_blocks_or_more_and_among_them(pilot):
    with pytest.raises(ValueError, match="a pilot of"):
        crowds.two_stage([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], pilot)


def test_values_that_are_not_finite_are_refused():
    for rule in (lambda x: crowds.two_stage(x, 3), lambda x: crowds.blocks_needed(x, 1.05)):
        with pytest.raises(ValueError, match="finite"):
            rule([0.1, 0.2, math.nan])


def test_without_spread_all_but_equality_is_certain():
    assert crowds.two_stage([0.0] * 3, 3)[:4] == (1, 1, 1, 0.5)
    assert crowds.two_stage([0.1] * 3, 3).p_above_1 == 1
    assert crowds.blocks_needed([0.0] * 6, 1.05) == 6


def test_as_many_blocks_as_make_the_interval_narrow_enough_and_no_more():
    pilot = np.random.default_rng(4).normal(0, 0.1, 6)
    n, half = crowds.blocks_needed(pilot, 1.05), crowds.half_width(1.05, 5)
    error = stats.t.ppf(0.975, 5) * pilot.std(ddof=1)
    assert error / math.sqrt(n) <= half < error / math.sqrt(n - 1)
    assert crowds.blocks_needed(pilot / 100, 1.05) == 6, "the pilot is enough"
    with pytest.raises(ValueError, match="above 1"):
        crowds.blocks_needed(pilot, 1.0)


def stein(rng, spread, truth, precision, cap=None):
    pilot = rng.normal(truth, spread, 6)
    n = min(crowds.blocks_needed(pilot, precision), cap or 10**9)
    return crowds.two_stage([*pilot, *rng.normal(truth, spread, n - 6)], 6)


@pytest.mark.parametrize("spread", [0.05, 0.2])
def test_a_plan_keeps_its_coverage_and_its_power(spread):
    """Within three standard errors of 95 %; no less than 90 %, within three too."""
    rng = np.random.default_rng(5)
    found = [stein(rng, spread, math.log(1.1), 1.1) for _ in range(1500)]
    assert np.mean([r.low <= 1.1 <= r.high for r in found]) == pytest.approx(0.95, abs=0.017)
    assert np.mean([r.low > 1 for r in found]) > 0.9 - 0.024


def test_a_cap_of_blocks_keeps_the_coverage():
    rng = np.random.default_rng(6)
    found = [stein(rng, 0.4, 0.0, 1.05, cap=20) for _ in range(1500)]
    assert {r.n for r in found} == {20}
    assert np.mean([r.low <= 1 <= r.high for r in found]) == pytest.approx(0.95, abs=0.017)


def test_components_of_a_crossed_design_are_found():
    rng = np.random.default_rng(8)
    lessons, weights = rng.normal(0, 0.05, (400, 1)), rng.normal(0, 0.1, 400)
    rest = rng.normal(0, math.hypot(0.03, 0.02), (400, 400))
    found = crowds.components(lessons + weights + rest, 0.02)
    assert found == pytest.approx((0.1, 0.05, 0.03, 0.02), rel=0.12)


def test_components_are_unbiased_in_squares():
    """Of small designs, where none is below 0: the method of moments."""
    rng = np.random.default_rng(9)
    shapes = (
        rng.normal(0, 1, (4000, 4, 1)),
        rng.normal(0, 2, (4000, 1, 5)),
        rng.normal(0, 0.1, (4000, 4, 5)),
    )
    squares = np.mean([np.square(crowds.components(y, 0.0)) for y in sum(shapes)], axis=0)
    assert squares[:3] == pytest.approx((4, 1, 0.01), rel=0.07)


def test_components_below_0_are_0():
    checkered = np.indices((4, 4)).sum(axis=0) % 2 * 1.0
    assert crowds.components(checkered, 9.0) == (0, 0, 0, 9)
    with pytest.raises(ValueError, match="at least 2 x 2"):
        crowds.components(np.zeros((1, 4)), 0.0)


def test_evaluation_is_what_students_and_sets_do_not_explain():
    rng = np.random.default_rng(10)
    students, sets = rng.normal(0, 1, (300, 1)), rng.normal(0, 1, 20)
    assert crowds.evaluation_sd(students + sets) == pytest.approx(0, abs=1e-12)
    noise = rng.normal(0, 0.02, (300, 20))
    assert crowds.evaluation_sd(students + sets + noise) == pytest.approx(0.02, rel=0.05)
