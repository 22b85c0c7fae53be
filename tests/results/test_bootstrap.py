"""The paired bootstrap: coverage of a known truth, pairing of codecs, undefined replicates."""

import math
import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from scipy.stats import binom

from icmbench.results import bootstrap
from icmbench.results.bootstrap import (
    BD_INTERVAL_COLUMNS,
    Point,
    bd_intervals,
    centred_interval,
    draw_replicates,
    draw_weights,
    score_intervals,
    with_intervals,
)
from icmbench.results.scores import normalise
from icmbench.results.tables import bdrate_frame

from . import simulation


def mean_quality(quality, weights):
    return {"q": float(weights @ quality / weights.sum())}


def two_codecs(n=50, scale=0.5):
    """Two codecs of the same qualities; the second needs `scale` of the rate on every image."""
    rng = np.random.default_rng(0)
    easy, pixels = rng.normal(0, 3, n), np.full(n, 100.0)
    bits = np.exp(rng.normal(3, 0.7, n))
    return [
        Point(codec, str(k), partial(mean_quality, easy + 10 * k), bits * 2.0**k * factor, pixels)
        for codec, factor in (("a", 1.0), ("b", scale))
        for k in range(4)
    ]


def test_weights_add_up_to_the_number_of_images():
    weights = np.array([draw_weights(200, 7, k) for k in range(1, 400)])
    assert (weights.sum(axis=1) == 200).all() and (weights >= 0).all()
    assert weights.mean() == 1 and weights.var() == pytest.approx(199 / 200, abs=0.02)  # Variance of a binomial of 200 draws.
    assert (draw_weights(200, 7, 0) == 1).all()
    assert not np.array_equal(draw_weights(200, 7, 1), draw_weights(200, 8, 1))


@pytest.mark.parametrize("n_images", [1, 9, 700])
def test_every_point_gets_the_weights_of_its_replicates(n_images):
    got = []

    def aggregate(weights):
        got.append(weights.copy())
        return {"score": 1.0}

    draw_replicates([Point("a", "1", aggregate), Point("b", "1", aggregate)], n_images, ["score"], count=300, seed=5)
    expected = [draw_weights(n_images, 5, replicate) for replicate in range(301)]
    assert np.array_equal(got, expected * 2) and got[0].dtype == np.float64


def test_replicates_are_weighted_scores_and_rates():
    points = two_codecs()
    frame = draw_replicates(points, 50, ["q"], 20, seed=3)
    assert [*frame.columns] == ["codec", "point", "realisation", "replicate", "bpp", "q"] and len(frame) == 8 * 21
    row = frame[(frame["codec"] == "b") & (frame["point"] == "2") & (frame["replicate"] == 5)].iloc[0]
    copies = np.repeat(np.arange(50), draw_weights(50, 3, 5).astype(int))
    assert row["bpp"] == pytest.approx(np.sum(points[6].bits[copies]) / np.sum(points[6].pixels[copies]))
    assert row["q"] == pytest.approx(points[6].aggregate(np.ones(50))["q"] + np.mean(points[0].aggregate.args[0][copies])
                                     - np.mean(points[0].aggregate.args[0]))  # fmt: skip


def test_a_fixed_seed_gives_the_same_numbers_with_every_executor():
    points = two_codecs()
    alone = draw_replicates(points, 50, ["q"], 250, seed=3)
    with ThreadPoolExecutor(3) as threads:
        assert_frame_equal(draw_replicates(points, 50, ["q"], 250, seed=3, executor=threads), alone)
    with ProcessPoolExecutor(2) as processes:
        assert_frame_equal(draw_replicates(points[:2], 50, ["q"], 250, seed=3, executor=processes), alone[: 2 * 251])
        assert_frame_equal(bd_intervals(alone, "a", executor=processes), bd_intervals(alone, "a"))
    assert not draw_replicates(points, 50, ["q"], 250, seed=4)["q"].equals(alone["q"])


class Batched:
    """A score of all replicates at once; it notes the shapes of the weights that it is called with."""

    takes_batches = True

    def __init__(self, quality):
        self.quality, self.shapes = quality, []

    def __call__(self, offset, weights):
        self.shapes.append(weights.shape)
        return {"q": np.array([mean_quality(self.quality, row)["q"] for row in weights]) + offset}


def test_an_aggregate_that_takes_batches_gets_many_replicates_and_gives_the_same_numbers(monkeypatch):
    points = two_codecs()
    quality = points[0].aggregate.args[0]
    alone = draw_replicates([replace(points[0], aggregate=partial(mean_quality, quality))], 50, ["q"], 300, seed=3)
    batched = Batched(quality)
    together = draw_replicates([replace(points[0], aggregate=partial(batched, 0.0))], 50, ["q"], 300, seed=3)
    assert_frame_equal(together, alone, check_exact=True)
    assert batched.shapes == [(256, 50), (45, 50)]
    monkeypatch.setattr(bootstrap, "DRAWN_AT_ONCE", 50 * 7)  # A set so large that the weights of 7 replicates are the limit.
    batched.shapes.clear()
    together = draw_replicates([replace(points[0], aggregate=partial(batched, 0.0))], 50, ["q"], 20, seed=3)
    assert_frame_equal(together, alone[:21], check_exact=True)
    assert batched.shapes == [(7, 50)] * 3


def test_an_aggregate_that_only_claims_to_take_batches_is_refused():
    def one_number(weights):
        return {"q": 1.0}

    one_number.takes_batches = True
    with pytest.raises(ValueError, match=r"the scores 'q' of 6 replicates are of shape \(\); return one number for each row"):
        draw_replicates([Point("a", "0", one_number)], 50, ["q"], 5)


def test_what_the_images_have_in_common_cancels():
    row = bd_intervals(draw_replicates(two_codecs(), 50, ["q"], 200), "a").iloc[0]
    assert (row["low"], row["high"]) == pytest.approx((-50, -50), abs=1e-9)  # Half the rate, whichever images were drawn.
    assert row["undefined"] == 0 and row["codec"] == "b" and row["replicates"] == 200
    scores = score_intervals(draw_replicates(two_codecs(), 50, ["q"], 200))
    assert (scores["high"] - scores["low"] > 1).all()


def test_undefined_replicates_are_counted_and_most_of_them_give_no_interval():
    samples = np.arange(100.0)
    samples[:30] = np.nan
    low, high, undefined = centred_interval(65.0, samples)
    assert 30 <= low < 65 < high <= 99 and undefined == pytest.approx(0.3)
    samples[:51] = np.inf
    assert centred_interval(65.0, samples)[:2] == pytest.approx((math.nan, math.nan), nan_ok=True)
    assert np.isnan(centred_interval(math.nan, np.arange(9.0))[0])
    points = two_codecs()
    points[4:] = [replace(point, aggregate=partial(far_unless_drawn, point.aggregate)) for point in points[4:]]
    row = bd_intervals(draw_replicates(points, 50, ["q"], 100), "a").iloc[0]
    assert 0 < row["undefined"] < 0.5 and np.isfinite(row["low"])


def far_unless_drawn(aggregate, weights):
    """A score far from the anchor's in the 36% of replicates in which the first image is not drawn."""
    return {"q": aggregate(weights)["q"] + (0 if weights[0] else 1000)}


def test_intervals_stay_about_the_estimate_where_resampling_shifts_the_score():
    """Resampling shifts AP on few images. The interval is moved back, and keeps the shape of the replicates."""
    replicated = np.random.default_rng(0).normal(0, 1, 20_000)
    for shift in (0, 1.5, 40):
        assert centred_interval(0.0, replicated + shift)[:2] == pytest.approx((-1.96, 1.96), abs=0.06)
    low, high, _ = centred_interval(0.0, np.exp(replicated))
    assert (low, high) == pytest.approx((np.exp(-1.96) - 1, np.exp(1.96) - 1), abs=0.4) and high > -3 * low
    assert centred_interval(5.0, np.full(10, 5.0))[:2] == (5.0, 5.0)


def test_realisations_are_averaged_before_the_curve():
    points = two_codecs()
    seeds = [replace(point, realisation=f"seed={seed}") for point in points[4:] for seed in (0, 1)]
    frame = bd_intervals(draw_replicates(points[:4] + seeds, 50, ["q"], 60), "a")
    assert len(frame) == 1 and frame.loc[0, "low"] == pytest.approx(-50)


def test_metrics_that_are_not_named_are_left_out():
    assert [*draw_replicates(two_codecs(), 50, [], 10).columns] == ["codec", "point", "realisation", "replicate", "bpp"]
    assert [*bd_intervals(draw_replicates([], 5, ["q"], 10), "a").columns] == BD_INTERVAL_COLUMNS
    with pytest.raises(ValueError, match="has no metric 'fid'; it has q"):
        draw_replicates(two_codecs(), 50, ["fid"], 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: [p[0], p[0]], "'a' has point '0' twice"),
        (lambda p: [replace(p[0], bits=np.ones(3))], "shapes"),
        (lambda p: [replace(p[0], bits=np.ones(3), pixels=np.ones(3))], "for 50 images"),
    ],
)
def test_points_that_do_not_fit_together_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        draw_replicates(change(two_codecs()), 50, ["q"], 5)


def test_uncompressed_has_a_score_interval_and_no_curve():
    points = two_codecs()
    points.append(Point("uncompressed", "", points[3].aggregate))
    frame = draw_replicates(points, 50, ["q"], 30)
    assert set(bd_intervals(frame, "a")["codec"]) == {"b"}
    ceiling = score_intervals(frame).set_index("codec").loc["uncompressed"]
    assert ceiling["low"] < ceiling["value"] < ceiling["high"]


def test_intervals_reach_the_scores_and_the_bd_table():
    points = two_codecs()
    frame = draw_replicates(points, 50, ["q"], 100)
    first = frame[frame["replicate"] == 0]
    scores = pd.DataFrame(
        {"codec": first["codec"], "point": first["point"], "bpp": first["bpp"], "metric": "q", "value": first["q"]}
    )
    scores = normalise(scores.assign(task="quality", dataset="d"))
    with_bars = with_intervals(scores, {"quality": frame, "another": frame})
    assert (with_bars["low"] < with_bars["value"]).all() and (with_bars["value"] < with_bars["high"]).all()
    assert scores["low"].isna().all()
    row = bdrate_frame(with_bars, "a", replicates={"quality": frame}).iloc[0]
    assert (row["low"], row["bd_rate_percent"], row["high"]) == pytest.approx((-50, -50, -50))
    assert "95% interval of 100 paired replicates, none undefined" in row["note"] and row["undefined"] == 0
    assert row["quality_low"] < row["bd_quality"] < row["quality_high"]
    assert np.isnan(bdrate_frame(with_bars, "a").iloc[0]["low"])


def test_coverage_with_correlated_codecs_and_a_saturating_curve():
    """About 95 in 100 intervals of 95% hold the truth. ICMBENCH_COVERAGE_TRIALS=1000 narrows the band to about 2 points."""
    trials = int(os.environ.get("ICMBENCH_COVERAGE_TRIALS", "25"))
    n, count = (500, 300) if trials >= 500 else (300, 80)
    scores, rate, quality = simulation.true_values(4_000_000 if trials >= 500 else 400_000)
    hits = np.zeros(2)
    score_hits = []
    for trial in range(trials):
        images = simulation.draw_images(n, np.random.default_rng([5, trial]))
        frame = draw_replicates(simulation.bootstrap_points(images), n, [simulation.METRIC], count, seed=trial)
        row = bd_intervals(frame, "anchor").iloc[0]
        hits += row["low"] <= rate <= row["high"], row["quality_low"] <= quality <= row["quality_high"]
        each = score_intervals(frame)
        true = [scores[name] for name in zip(each["codec"], each["point"], strict=True)]
        score_hits.append(((each["low"] <= true) & (true <= each["high"])).mean())
    print(f"\ncoverage of {trials} trials: BD-rate, BD-quality {hits / trials}, scores {np.mean(score_hits):.4f}")
    if trials >= 500:
        assert abs(hits / trials - 0.95).max() <= 0.03 and abs(np.mean(score_hits) - 0.95) <= 0.03
    else:
        assert hits.min() >= binom.ppf(0.001, trials, 0.95)
        assert np.mean(score_hits) >= 0.85
