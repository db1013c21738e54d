"""Ratios of times: Student's interval if none is censored, and what remains of it if some are."""

import numpy as np
import pytest
from scipy import stats

from analysis.statistics import ratio
from analysis.statistics.ratio import Times

NAN = np.nan


def draw(rng, n, speedup=1.5, horizon=np.inf):
    """Times of a baseline and of one that is faster, of n seeds, watched up to a horizon."""
    of_seed = rng.normal(0, 0.2, n)
    for factor in (1, speedup):
        times = 1000 * np.exp(of_seed + rng.normal(0, 0.2, n)) / factor
        yield Times(np.where(times <= horizon, times, NAN), np.full(n, min(horizon, 1e30)))


@pytest.mark.parametrize("n", [3, 5, 20])
def test_without_misses_the_interval_is_students_on_logarithms(n):
    base, other = draw(np.random.default_rng(n), n)
    logs = np.log(base.reached / other.reached)
    found = ratio.paired(base, other)
    expected = np.exp(stats.ttest_1samp(logs, 0).confidence_interval(0.95))
    assert (found.low, found.high) == pytest.approx(tuple(expected), rel=1e-9)
    assert found.value == pytest.approx(stats.gmean(base.reached / other.reached), rel=1e-12)
    one_sided = stats.ttest_1samp(logs, 0, alternative="greater").pvalue
    assert found.p_above_1 == pytest.approx(1 - one_sided, rel=1e-9)
    assert ratio.geometric_mean(base.reached / other.reached)[:4] == pytest.approx(found[:4], rel=1e-9)


def test_unpaired_and_without_misses_it_is_welchs():
    rng = np.random.default_rng(0)
    (base, _), (other, _) = draw(rng, 8), draw(rng, 5)
    logs = np.log(base.reached), np.log(other.reached)
    found = ratio.unpaired(base, other)
    expected = np.exp(stats.ttest_ind(*logs, equal_var=False).confidence_interval(0.95))
    assert (found.low, found.high) == pytest.approx(tuple(expected), rel=1e-9)
    assert found.n == 5


@pytest.mark.filterwarnings("ignore:Precision loss")  # SciPy, of times that are all cut equally
@pytest.mark.parametrize("pairing", [ratio.paired, ratio.unpaired])
@pytest.mark.parametrize("seed", range(8))
def test_with_misses_it_is_all_that_the_test_by_hand_does_not_reject(pairing, seed):
    """A t-test of times scaled by the ratio and cut where both were watched, without double cuts."""
    rng = np.random.default_rng(seed)
    base, other = draw(rng, 6 + seed, speedup=1.3, horizon=1100)
    assert np.isnan(base.reached).any()

    def accepted(r):
        cut = np.minimum(r * other.watched, base.watched)
        mine = np.fmin(r * np.fmin(other.reached, other.watched), cut)
        theirs = np.fmin(np.fmin(base.reached, base.watched), cut)
        logs = np.log(mine), np.log(theirs)
        if pairing is ratio.paired:
            informative = np.log(mine / theirs)[(mine < cut) | (theirs < cut)]
            return len(informative) < 3 or stats.ttest_1samp(informative, 0).pvalue >= 0.05
        return stats.ttest_ind(*logs, equal_var=False).pvalue >= 0.05

    found = pairing(base, other)
    assert accepted(found.value)
    if found.low > 0:
        assert accepted(found.low * 1.0001)
        assert not accepted(found.low * 0.9999)
    if np.isfinite(found.high):
        assert accepted(found.high * 0.9999)
        assert not accepted(found.high * 1.0001)
    else:
        assert accepted(1e6)
    assert found.low > 0 or accepted(1e-6)


@pytest.mark.parametrize("horizon", [np.inf, 1100, 800])
@pytest.mark.parametrize("pairing", [ratio.paired, ratio.unpaired])
def test_the_choice_of_the_baseline_does_not_matter(pairing, horizon):
    base, other = draw(np.random.default_rng(1), 7, horizon=horizon)
    forth, back = pairing(base, other), pairing(other, base).inverse()
    assert forth[:5] == pytest.approx(back[:5], rel=1e-6)
    assert forth.bound == back.bound


def test_the_unit_of_time_does_not_matter():
    base, other = draw(np.random.default_rng(2), 6, horizon=1000)
    in_hours = [Times(t.reached / 3600, t.watched / 3600) for t in (base, other)]
    assert ratio.paired(base, other)[:4] == pytest.approx(ratio.paired(*in_hours)[:4], rel=1e-9)


def test_a_miss_gives_at_least_and_leaves_the_interval_open():
    never = Times(np.full(5, NAN), np.full(5, 1000.0))
    early = Times(np.array([300.0, 310, 320, 330, 340]), np.full(5, 1000.0))
    found = ratio.paired(never, early)
    assert found.bound == "at least"
    assert found.value == pytest.approx(1000 / 300)
    assert 1 < found.low < found.value
    assert found.high == np.inf
    assert str(found).startswith("at least 3.333 [")
    assert str(found).endswith(", ∞)")
    assert found.inverse().bound == "at most"
    assert found.inverse().low == 0


def test_without_a_trial_at_the_target_there_is_no_estimate():
    never = Times(np.full(5, NAN), np.full(5, 1000.0))
    assert str(ratio.paired(never, never)) == "-"
    assert str(ratio.paired(*[Times(np.array([]), np.array([]))] * 2)) == "-"


def test_a_dropped_miss_would_have_made_the_loser_look_better_than_it_is():
    """Of ten seeds the baseline misses the four on which it is slowest."""
    base, other = draw(np.random.default_rng(3), 10)
    slowest = base.reached >= np.sort(base.reached)[6]
    horizon = base.reached[~slowest].max()
    seen = Times(np.where(slowest, NAN, base.reached), np.full(10, horizon))
    cut = Times(other.reached, np.full(10, horizon))
    dropped = ratio.geometric_mean((base.reached / other.reached)[~slowest])
    whole, censored = ratio.paired(base, other), ratio.paired(seen, cut)
    assert abs(censored.value / whole.value - 1) < abs(dropped.value / whole.value - 1)


def test_one_or_two_pairs_have_no_interval_and_equal_pairs_a_point():
    assert str(ratio.geometric_mean([2.0])) == "2"
    two = ratio.geometric_mean([2.0, 2.0])
    assert str(two) == "2", "that two are equal happens"
    assert np.isnan(two.low)
    assert str(ratio.geometric_mean([])) == "-"
    assert ratio.geometric_mean([1.0] * 5)[:4] == pytest.approx((1, 1, 1, 0.5))
    three = ratio.geometric_mean([3.0] * 5)
    assert three[:4] == pytest.approx((3, 3, 3, 1))
