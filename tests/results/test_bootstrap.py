"""The paired bootstrap: its coverage where the truth is known, its pairing, and what it does with the undefined."""

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

from icmbench.results.bootstrap import (
    BD_INTERVALS,
    Point,
    bd_intervals,
    draw_weights,
    interval,
    replicates,
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


def test_weights_are_draws_of_as_many_images():
    weights = np.array([draw_weights(200, 7, k) for k in range(1, 400)])
    assert (weights.sum(axis=1) == 200).all() and (weights >= 0).all()
    assert weights.mean() == 1 and weights.var() == pytest.approx(199 / 200, abs=0.02)  # binomial of 200 draws
    assert (draw_weights(200, 7, 0) == 1).all()
    assert not np.array_equal(draw_weights(200, 7, 1), draw_weights(200, 8, 1))


def test_replicates_are_weighted_scores_and_rates():
    points = two_codecs()
    frame = replicates(points, 50, ["q"], 20, seed=3)
    assert [*frame.columns] == ["codec", "point", "realisation", "replicate", "bpp", "q"] and len(frame) == 8 * 21
    row = frame[(frame["codec"] == "b") & (frame["point"] == "2") & (frame["replicate"] == 5)].iloc[0]
    copies = np.repeat(np.arange(50), draw_weights(50, 3, 5).astype(int))
    assert row["bpp"] == pytest.approx(np.sum(points[6].bits[copies]) / np.sum(points[6].pixels[copies]))
    assert row["q"] == pytest.approx(points[6].aggregate(np.ones(50))["q"] + np.mean(points[0].aggregate.args[0][copies])
                                     - np.mean(points[0].aggregate.args[0]))  # fmt: skip


def test_a_fixed_seed_gives_the_same_numbers_however_they_are_shared_out():
    points = two_codecs()
    alone = replicates(points, 50, ["q"], 250, seed=3)
    with ThreadPoolExecutor(3) as threads:
        assert_frame_equal(replicates(points, 50, ["q"], 250, seed=3, executor=threads), alone)
    with ProcessPoolExecutor(2) as processes:
        assert_frame_equal(replicates(points[:2], 50, ["q"], 250, seed=3, executor=processes), alone[: 2 * 251])
        assert_frame_equal(bd_intervals(alone, "a", executor=processes), bd_intervals(alone, "a"))
    assert not replicates(points, 50, ["q"], 250, seed=4)["q"].equals(alone["q"])


def test_what_the_images_share_cancels():
    found = bd_intervals(replicates(two_codecs(), 50, ["q"], 200), "a").iloc[0]
    assert (found["low"], found["high"]) == pytest.approx((-50, -50), abs=1e-9)  # half the rate whatever was drawn
    assert found["undefined"] == 0 and found["codec"] == "b" and found["replicates"] == 200
    scores = score_intervals(replicates(two_codecs(), 50, ["q"], 200))
    assert (scores["high"] - scores["low"] > 1).all()


def test_undefined_replicates_are_counted_and_most_of_them_give_no_interval():
    samples = np.arange(100.0)
    samples[:30] = np.nan
    low, high, undefined = interval(65.0, samples)
    assert 30 <= low < 65 < high <= 99 and undefined == pytest.approx(0.3)
    samples[:51] = np.inf
    assert interval(65.0, samples)[:2] == pytest.approx((math.nan, math.nan), nan_ok=True)
    assert np.isnan(interval(math.nan, np.arange(9.0))[0])
    points = two_codecs()
    points[4:] = [replace(point, aggregate=partial(far, point.aggregate)) for point in points[4:]]
    found = bd_intervals(replicates(points, 50, ["q"], 100), "a").iloc[0]
    assert 0 < found["undefined"] < 0.5 and np.isfinite(found["low"])


def far(aggregate, weights):
    """Out of the anchor's reach where the first image is not drawn (in about 36% of replicates)."""
    return {"q": aggregate(weights)["q"] + (0 if weights[0] else 1000)}


def test_intervals_stay_about_the_estimate_where_resampling_shifts_the_score():
    """As it does AP on few images; the shape of the replicates is kept."""
    replicated = np.random.default_rng(0).normal(0, 1, 20_000)
    for shift in (0, 1.5, 40):
        assert interval(0.0, replicated + shift)[:2] == pytest.approx((-1.96, 1.96), abs=0.06)
    low, high, _ = interval(0.0, np.exp(replicated))
    assert (low, high) == pytest.approx((np.exp(-1.96) - 1, np.exp(1.96) - 1), abs=0.4) and high > -3 * low
    assert interval(5.0, np.full(10, 5.0))[:2] == (5.0, 5.0)


def test_realisations_are_averaged_before_the_curve():
    points = two_codecs()
    seeds = [replace(point, realisation=f"seed={seed}") for point in points[4:] for seed in (0, 1)]
    found = bd_intervals(replicates(points[:4] + seeds, 50, ["q"], 60), "a")
    assert len(found) == 1 and found.loc[0, "low"] == pytest.approx(-50)


def test_metrics_that_are_not_named_are_left_out():
    assert [*replicates(two_codecs(), 50, [], 10).columns] == ["codec", "point", "realisation", "replicate", "bpp"]
    assert [*bd_intervals(replicates([], 5, ["q"], 10), "a").columns] == BD_INTERVALS
    with pytest.raises(ValueError, match="has no metric 'fid'; it has q"):
        replicates(two_codecs(), 50, ["fid"], 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: [p[0], p[0]], "'a' has point '0' twice"),
        (lambda p: [replace(p[0], bits=np.ones(3))], "shapes"),
        (lambda p: [replace(p[0], bits=np.ones(3), pixels=np.ones(3))], "for 50 images"),
    ],
)
def test_what_does_not_fit_together_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replicates(change(two_codecs()), 50, ["q"], 5)


def test_uncompressed_has_a_score_interval_and_no_curve():
    points = two_codecs()
    points.append(Point("uncompressed", "", points[3].aggregate))
    frame = replicates(points, 50, ["q"], 30)
    assert set(bd_intervals(frame, "a")["codec"]) == {"b"}
    top = score_intervals(frame).set_index("codec").loc["uncompressed"]
    assert top["low"] < top["value"] < top["high"]


def test_intervals_reach_the_scores_and_the_bd_table():
    points = two_codecs()
    frame = replicates(points, 50, ["q"], 100)
    first = frame[frame["replicate"] == 0]
    scores = pd.DataFrame(
        {"codec": first["codec"], "point": first["point"], "bpp": first["bpp"], "metric": "q", "value": first["q"]}
    )
    scores = normalise(scores.assign(task="quality", dataset="d"))
    barred = with_intervals(scores, {"quality": frame, "another": frame})
    assert (barred["low"] < barred["value"]).all() and (barred["value"] < barred["high"]).all()
    assert scores["low"].isna().all()
    row = bdrate_frame(barred, "a", replicates={"quality": frame}).iloc[0]
    assert (row["low"], row["bd_rate_percent"], row["high"]) == pytest.approx((-50, -50, -50))
    assert "95% interval of 100 paired replicates, none undefined" in row["note"] and row["undefined"] == 0
    assert row["quality_low"] < row["bd_quality"] < row["quality_high"]
    assert np.isnan(bdrate_frame(barred, "a").iloc[0]["low"])


def test_coverage_with_correlated_codecs_and_a_saturating_curve():
    """Of 95% intervals about 95 in 100 hold the truth; ICMBENCH_COVERAGE_TRIALS=1000 narrows the band to about 2 points."""
    trials = int(os.environ.get("ICMBENCH_COVERAGE_TRIALS", "25"))
    n, count = (500, 300) if trials >= 500 else (300, 80)
    scores, rate, quality = simulation.truth(4_000_000 if trials >= 500 else 400_000)
    hits = np.zeros(2)
    score_hits = []
    for trial in range(trials):
        drawn = simulation.images(n, np.random.default_rng([5, trial]))
        frame = replicates(simulation.bootstrap_points(drawn), n, [simulation.METRIC], count, seed=trial)
        found = bd_intervals(frame, "anchor").iloc[0]
        hits += found["low"] <= rate <= found["high"], found["quality_low"] <= quality <= found["quality_high"]
        each = score_intervals(frame)
        true = [scores[name] for name in zip(each["codec"], each["point"], strict=True)]
        score_hits.append(((each["low"] <= true) & (true <= each["high"])).mean())
    print(f"\ncoverage of {trials} trials: BD-rate, BD-quality {hits / trials}, scores {np.mean(score_hits):.4f}")
    if trials >= 500:
        assert abs(hits / trials - 0.95).max() <= 0.03 and abs(np.mean(score_hits) - 0.95) <= 0.03
    else:
        assert hits.min() >= binom.ppf(0.001, trials, 0.95)
        assert np.mean(score_hits) >= 0.85
