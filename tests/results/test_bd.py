"""BD-rate and BD-quality: compared with the bjontegaard package, on curves that rise, and on curves that do not."""

import math

import numpy as np
import pytest

from icmbench.results.bd import BDResult, Change, bd_rate, mean_bd_rate, rate_at

RATES = [0.1, 0.2, 0.4, 0.8]
ANCHOR = np.column_stack([RATES, [30, 33, 36, 39]])


def curve(rates, qualities) -> np.ndarray:
    return np.column_stack([rates, qualities])


def shifted(offset: float) -> np.ndarray:
    return ANCHOR + np.array([0, offset])


def random_pair(rng: np.random.Generator) -> list[np.ndarray]:
    """Two rising curves of 4 to 8 points that share most of their rates and qualities."""
    pair = []
    for _ in range(2):
        n = int(rng.integers(3, 8))
        log_rate = rng.uniform(-1.5, -1.2) + np.cumsum([0, *rng.uniform(0.15, 0.4, n)])
        quality = rng.uniform(29, 31) + np.cumsum([0, *rng.uniform(0.8, 3.0, n)])
        pair.append(curve(10**log_rate, quality))
    return pair


@pytest.mark.parametrize("method", ["pchip", "cubic", "akima"])
def test_equals_the_bjontegaard_package(method):
    package = pytest.importorskip("bjontegaard")
    rng = np.random.default_rng(7)
    worst = 0.0
    for _ in range(1000):
        anchor, test = random_pair(rng)
        columns = (anchor[:, 0], anchor[:, 1], test[:, 0], test[:, 1])
        options = {"method": method, "require_matching_points": False, "min_overlap": 0}
        ours = bd_rate(rng.permutation(anchor), rng.permutation(test), method)
        assert ours.bd_rate_percent is not None and ours.bd_quality is not None
        for value, expected in (
            (ours.bd_rate_percent, package.bd_rate(*columns, **options)),
            (ours.bd_quality, package.bd_psnr(*columns, **options)),
        ):
            worst = max(worst, abs(value - expected) / abs(expected))
    assert worst < 1e-6


@pytest.mark.parametrize("method", ["pchip", "cubic", "akima"])
@pytest.mark.parametrize("envelope", ["error", "pareto", "isotonic"])
def test_a_constant_rate_factor_is_that_factor(method, envelope):
    result = bd_rate(ANCHOR, ANCHOR * [0.8, 1], method, envelope)
    assert result.bd_rate_percent == pytest.approx(-20)
    assert result.overlap == 1 and result.interval == (30, 39) and result.points_inside == (4, 4)
    assert result.spread == pytest.approx(0, abs=1e-9) and set(result.cross_checks) == {"pchip", "cubic", "akima"} - {method}
    assert not result.changes and not result.reason and not result.hint


def test_a_constant_quality_offset_is_that_offset():
    result = bd_rate(ANCHOR, shifted(1.5))
    assert result.bd_quality == pytest.approx(1.5)
    assert result.rate_interval == pytest.approx((0.1, 0.8))
    assert result.overlap == pytest.approx(7.5 / 9) and result.interval == (31.5, 39)


def test_lower_is_better_by_declaration():
    anchor, test = curve(RATES, [0.4, 0.3, 0.2, 0.1]), curve(np.array(RATES) / 2, [0.4, 0.3, 0.2, 0.1])
    result = bd_rate(anchor, test, higher_is_better=False)
    assert result.bd_rate_percent == pytest.approx(-50)
    assert result.interval == pytest.approx((0.1, 0.4)) and result.bd_quality == pytest.approx(-0.1)
    apart = bd_rate(anchor, test + np.array([0, 0.5]), higher_is_better=False, metric="lpips", names=("jpeg", "mine"))
    assert apart.bd_rate_percent is None
    assert "add a point of mine with lpips below 0.4, or of jpeg with lpips above 0.6" in apart.reason


class TestAwkwardCurves:
    """Four points each, against an anchor of 30, 33, 36, 39 at the same rates."""

    def test_dip_in_the_middle(self):
        test = curve(RATES, [30, 35, 33, 40])
        pareto = bd_rate(ANCHOR, test)
        assert pareto.changes == (Change("test", pytest.approx(0.4), 33),)
        assert pareto.bd_rate_percent == bd_rate(ANCHOR, test[[0, 1, 3]]).bd_rate_percent and -40 < pareto.bd_rate_percent < 0
        assert pareto.points == (4, 3) and pareto.cross_checks["cubic"] is None
        isotonic = bd_rate(ANCHOR, test, envelope="isotonic")
        middle = (pytest.approx(math.sqrt(0.08)), pytest.approx(34))
        assert [change.to for change in isotonic.changes] == [middle, middle]
        refused = bd_rate(ANCHOR, test, envelope="error", metric="AP")
        assert refused.bd_rate_percent is None and "AP 35 at rate 0.2 then AP 33 at rate 0.4" in refused.reason
        # The dip counts in BD-quality, because it was measured.
        assert pareto.bd_quality == refused.bd_quality and pareto.bd_quality < bd_rate(ANCHOR, test[[0, 1, 3]]).bd_quality

    def test_last_point_dips(self):
        test = curve(RATES, [30, 34, 38, 37])
        result = bd_rate(ANCHOR, test)
        assert -40 < result.bd_rate_percent < 0 and result.interval == (30, 38)
        assert [str(change) for change in result.changes] == ["dropped test at rate 0.8, value 37"]
        assert bd_rate(ANCHOR, test, envelope="error").bd_rate_percent is None
        assert bd_rate(ANCHOR, test, envelope="isotonic").interval == (30, pytest.approx(37.5))

    def test_tied_top(self):
        test = curve(RATES, [30, 35, 38, 38])
        result = bd_rate(ANCHOR, test)
        assert -40 < result.bd_rate_percent < 0
        assert result.changes == (Change("test", pytest.approx(0.8), 38),)
        merged = bd_rate(ANCHOR, test, envelope="isotonic")
        assert len(merged.changes) == 2 and merged.changes[0].to == (pytest.approx(math.sqrt(0.32)), 38)
        assert result.bd_rate_percent < merged.bd_rate_percent < 0
        assert "does not rise" in bd_rate(ANCHOR, test, envelope="error").reason

    def test_plateau(self):
        test = curve(RATES, [30, 39.8, 39.9, 40])
        anchor = curve(RATES, [30, 34, 37, 40])
        result = bd_rate(anchor, test)
        # At every quality the rate is above a quarter of the anchor's.
        assert -75 < result.bd_rate_percent < 0 and not result.changes
        # The interpolations disagree wildly, and the result says so.
        assert result.cross_checks["cubic"] == pytest.approx(-100, abs=0.1)
        assert result.spread > 40
        reverse = bd_rate(test, anchor)
        assert mean_bd_rate([result.bd_rate_percent, reverse.bd_rate_percent]) == pytest.approx(0, abs=1e-9)
        assert reverse.spread > 1e5

    @pytest.mark.parametrize("bad", [[0.4, math.nan], [0.4, math.inf], [0.0, 36], [-0.1, 36], [math.nan, 36]])
    def test_a_point_that_is_no_number_refuses_both(self, bad):
        result = bd_rate(ANCHOR, [*ANCHOR[:3], bad], names=("jpeg", "mine"), metric="psnr")
        assert result.bd_rate_percent is None and result.bd_quality is None and result.spread is None
        assert result.reason == result.quality_reason and "mine" in result.reason and "psnr" in result.reason

    def test_no_overlap_says_which_points_close_the_gap(self):
        result = bd_rate(ANCHOR, shifted(-10), metric="AP", names=("jpeg", "mine"))
        assert result.bd_rate_percent is None and result.overlap == 0 and result.interval is None
        assert "jpeg spans 30 to 39, mine 20 to 29" in result.reason
        assert "add a point of mine with AP above 30, or of jpeg with AP below 29" in result.reason
        assert result.bd_quality == pytest.approx(-10)
        touching = bd_rate(ANCHOR, shifted(9))
        assert "add a point of anchor with quality above 39, or of test with quality below 39" in touching.reason

    def test_rates_that_do_not_overlap(self):
        result = bd_rate(ANCHOR, ANCHOR * [0.01, 1], names=("jpeg", "mine"))
        assert result.bd_rate_percent == pytest.approx(-99) and result.bd_quality is None
        assert "mine spans 0.001 to 0.008 (add a point of mine above rate 0.1)" in result.quality_reason

    @pytest.mark.parametrize(("test", "reason"), [([], "test has no points"), ([[0.2, 35]], "test keeps 1 of 1 points")])
    def test_too_few_points(self, test, reason):
        result = bd_rate(ANCHOR, test)
        assert result.bd_rate_percent is None and result.bd_quality is None and result.reason.startswith(reason)

    def test_a_falling_curve_keeps_one_point(self):
        result = bd_rate(ANCHOR, curve(RATES, [39, 36, 33, 30]))
        assert result.reason.startswith(
            "test keeps 1 of 4 points on its envelope and pchip needs 2 (add a point above rate 0.1 with"
        )
        assert result.bd_quality is not None

    def test_cubic_needs_four_points_and_akima_three(self):
        three = bd_rate(ANCHOR, ANCHOR[:3])
        assert three.cross_checks["cubic"] is None and three.cross_checks["akima"] == pytest.approx(0, abs=1e-9)
        assert bd_rate(ANCHOR, ANCHOR[:3], "cubic").bd_rate_percent is None
        two = bd_rate(ANCHOR, ANCHOR[:2])
        assert two.bd_rate_percent == pytest.approx(0, abs=1e-9) and two.cross_checks == {"cubic": None, "akima": None}

    def test_several_points_at_one_rate(self):
        test = np.vstack([ANCHOR, [0.2, 31]])
        assert bd_rate(ANCHOR, test).changes == (Change("test", pytest.approx(0.2), 31),)
        averaged = bd_rate(ANCHOR, curve(RATES, [30, 32, 36, 39]))
        assert bd_rate(ANCHOR, test).bd_quality == averaged.bd_quality
        isotonic = bd_rate(ANCHOR, test, envelope="isotonic")
        assert isotonic.bd_rate_percent == pytest.approx(averaged.bd_rate_percent)
        strict = bd_rate(ANCHOR, test, envelope="error")
        assert "at rate 0.2" in strict.reason and "several points at rate 0.2" in strict.quality_reason


def test_a_narrow_overlap_names_the_points_that_widen_it():
    result = bd_rate(ANCHOR, shifted(-6), metric="AP", names=("jpeg", "mine"))
    assert result.overlap == pytest.approx(3 / 9) and result.points_inside == (2, 2)
    assert result.hint == "add a point of mine with AP above 33"


def test_pchip_and_pareto_survive_any_input():
    """No input of finite numbers raises, and every refusal has its reason."""
    rng = np.random.default_rng(0)
    for envelope in ("error", "pareto", "isotonic"):
        for _ in range(300):
            pair = [np.round(rng.uniform(0, 5, (int(rng.integers(0, 7)), 2)), int(rng.integers(0, 3))) for _ in range(2)]
            result = bd_rate(*pair, envelope=envelope)
            assert isinstance(result, BDResult)
            assert (result.bd_rate_percent is None) == bool(result.reason)
            assert (result.bd_quality is None) == bool(result.quality_reason)


@pytest.mark.parametrize("points", [[1, 2, 3], [[1, 2, 3]], [[[1, 2]]]])
def test_a_wrong_shape_is_an_error(points):
    with pytest.raises(ValueError, match=r"shape \(n, 2\)"):
        bd_rate(ANCHOR, points)
    with pytest.raises(ValueError, match="unknown method 'spline'"):
        bd_rate(ANCHOR, ANCHOR, "spline")


def test_rate_at_a_quality():
    assert rate_at(ANCHOR, 34.5).rate == pytest.approx(0.2 * math.sqrt(2))
    assert rate_at(ANCHOR, 39).rate == pytest.approx(0.8)
    assert rate_at(ANCHOR, 40, metric="AP", name="jpeg").reason == "not reached: best AP of jpeg is 39 at rate 0.8"
    assert rate_at(ANCHOR, 29).reason == "below rate 0.1, the lowest measured"
    assert rate_at(curve(RATES, [0.4, 0.3, 0.2, 0.1]), 0.2, higher_is_better=False).rate == pytest.approx(0.4)
    assert rate_at([], 1).rate is None and rate_at(ANCHOR, math.inf).rate is None
    assert rate_at([[0.5, 30]], 30).rate == 0.5


def test_means_are_taken_in_log_rate():
    assert mean_bd_rate([-50, 100]) == pytest.approx(0)
    assert mean_bd_rate([-20]) == pytest.approx(-20)
    for undefined in ([], [-100.0], [math.nan]):
        with pytest.raises(ValueError, match="above -100"):
            mean_bd_rate(undefined)
