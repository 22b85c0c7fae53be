"""Feature difference against task drop."""

import numpy as np
import pandas as pd
import pytest

from icmbench.results.correlation import correlation_frame, correlation_table
from icmbench.results.scores import normalise


def frame_of(*, dataset="kodak", top=80.0):
    rows = [{"codec": "uncompressed", "dataset": "kodak", "task": "det", "metric": "AP", "value": top, "bpp": None}]
    for codec, slope in (("jpeg", 100), ("elic", 50)):
        for k, difference in enumerate((0.1, 0.2, 0.4, 0.5)):
            place = {"codec": codec, "point": str(k), "bpp": 1 / (1 + k)}
            rows.append(place | {"dataset": "kodak", "task": "det", "metric": "AP", "value": top - slope * difference})
            for depth, layer in enumerate(("layer1.0", "layer4.2")):
                noise = depth * (-1) ** k * 0.05
                value = {"value": difference + noise, "higher_is_better": False}
                rows.append(place | {"dataset": dataset, "task": "layers", "metric": layer} | value)
    return normalise(pd.DataFrame(rows))


def test_a_drop_in_proportion_correlates_fully_and_its_slope_is_what_is_lost():
    found = correlation_frame(frame_of()).set_index(["codec", "layer"])
    first = found.loc["jpeg", "layer1.0"]
    assert (first["pearson"], first["spearman"], first["slope"], first["points"]) == pytest.approx((1, 1, 10, 4))
    assert found.loc[("elic", "layer1.0"), "slope"] == pytest.approx(5)
    noisy = [0.1 + 0.05, 0.2 - 0.05, 0.4 + 0.05, 0.5 - 0.05]
    assert found.loc[("jpeg", "layer4.2"), "pearson"] == pytest.approx(np.corrcoef(noisy, [10, 20, 40, 50])[0, 1])
    table = correlation_table(found.reset_index())
    assert table["Codec"].tolist() == ["jpeg", "elic"] and table["Closest layer"].tolist() == ["layer1.0 (+1.000)"] * 2


def test_what_has_no_correlation_has_no_number():
    assert not len(correlation_frame(frame_of(dataset="another")))
    few = frame_of()
    few = few[few["point"].isin(["0", "1"]) | (few["codec"] == "uncompressed")]
    found = correlation_frame(few)
    assert found["pearson"].isna().all() and (found["points"] == 2).all()
    assert (correlation_table(found)["Pearson"] == "n/a").all()
