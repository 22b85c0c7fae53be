"""Correlation of feature difference with task drop."""

import numpy as np
import pandas as pd
import pytest

from icmbench.results.correlation import _correlate, correlation_frame, correlation_table
from icmbench.results.scores import normalise


def make_scores(*, dataset="kodak", ceiling=80.0):
    rows = [{"codec": "uncompressed", "dataset": "kodak", "task": "det", "metric": "AP", "value": ceiling, "bpp": None}]
    for codec, slope in (("jpeg", 100), ("elic", 50)):
        for k, difference in enumerate((0.1, 0.2, 0.4, 0.5)):
            names = {"codec": codec, "point": str(k), "bpp": 1 / (1 + k)}
            rows.append(names | {"dataset": "kodak", "task": "det", "metric": "AP", "value": ceiling - slope * difference})
            for depth, layer in enumerate(("layer1.0", "layer4.2")):
                noise = depth * (-1) ** k * 0.05
                value = {"value": difference + noise, "higher_is_better": False}
                rows.append(names | {"dataset": dataset, "task": "layers", "metric": layer} | value)
    return normalise(pd.DataFrame(rows))


def test_a_proportional_drop_correlates_fully_and_its_slope_is_the_loss():
    frame = correlation_frame(make_scores()).set_index(["codec", "layer"])
    first = frame.loc["jpeg", "layer1.0"]
    assert (first["pearson"], first["spearman"], first["slope"], first["points"]) == pytest.approx((1, 1, 10, 4))
    assert frame.loc[("elic", "layer1.0"), "slope"] == pytest.approx(5)
    noisy = [0.1 + 0.05, 0.2 - 0.05, 0.4 + 0.05, 0.5 - 0.05]
    assert frame.loc[("jpeg", "layer4.2"), "pearson"] == pytest.approx(np.corrcoef(noisy, [10, 20, 40, 50])[0, 1])
    table = correlation_table(frame.reset_index())
    assert table["Codec"].tolist() == ["jpeg", "elic"] and table["Closest layer"].tolist() == ["layer1.0 (+1.000)"] * 2


def test_without_a_correlation_there_is_no_number():
    assert not len(correlation_frame(make_scores(dataset="another")))
    few_points = make_scores()
    few_points = few_points[few_points["point"].isin(["0", "1"]) | (few_points["codec"] == "uncompressed")]
    frame = correlation_frame(few_points)
    assert frame["pearson"].isna().all() and (frame["points"] == 2).all()
    assert (correlation_table(frame)["Pearson"] == "n/a").all()


def test_spearman_is_that_of_scipy_with_and_without_ties():
    from scipy.stats import spearmanr

    chance = np.random.default_rng(0)
    for _ in range(200):
        pairs = np.stack([chance.integers(0, 5, 9) / 4, chance.random(9).round(1)], axis=1)
        if np.ptp(pairs, axis=0).all():
            assert _correlate(pairs)[1] == spearmanr(*pairs.T).statistic


def test_a_codec_without_layers_has_correlations_without_points():
    scores = make_scores()
    frame = correlation_frame(scores[(scores["codec"] != "elic") | (scores["task"] == "det")])
    assert frame.groupby("codec")["points"].max().to_dict() == {"jpeg": 4, "elic": 0}
