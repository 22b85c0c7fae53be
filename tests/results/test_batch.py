"""Deltas of many replicates at once equal those of bd_rate, on awkward curves too."""

import numpy as np
import pytest

from icmbench.results.batch import pareto_pchip_deltas
from icmbench.results.bd import bd_rate


def curves(rng, n, points):
    """n curves that mostly rise; some dip, tie in quality, leave the other curve's range, or are not finite."""
    rate = np.sort(np.exp(rng.normal(-1, 1, (n, points))), axis=1)
    quality = 20 + 8 * np.log(rate) + rng.normal(0, 2, (n, points)) + rng.choice([0, 0, 0, 40], n)[:, None]
    quality[rng.random(n) < 0.1, -1] = quality[0, 0]
    quality[rng.random((n, points)) < 0.03] = np.nan
    rate[rng.random((n, points)) < 0.02] = 0
    shuffled = np.stack([rate, quality], axis=2)
    return rng.permuted(shuffled, axis=1) if points == 1 else shuffled[:, rng.permutation(points)]


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize("points", [(4, 4), (2, 5), (1, 3), (6, 3)])
def test_equal_to_bd_rate(points, higher):
    rng = np.random.default_rng([*points, higher])
    anchor, test = (curves(rng, 150, p) * [1, 1 if higher else -1] for p in points)
    anchor[0], test[0] = 1.0 + np.arange(points[0])[:, None], 2.0 + np.arange(points[1])[:, None]
    test[0, :2, 0] = 0.5  # Two points at one rate, which are left to bd_rate.
    deltas, decided = pareto_pchip_deltas(anchor, test, higher)
    assert points[1] < 2 or not decided[0]
    assert decided.mean() > 0.9
    results = [bd_rate(a, b, "pchip", "pareto", higher, cross_checks=False) for a, b in zip(anchor[decided], test[decided])]
    expected = np.array([(r.bd_rate_percent, r.bd_quality) for r in results], dtype=float)
    np.testing.assert_allclose(deltas[decided], expected, rtol=1e-9, atol=1e-9)
    assert points[0] == 1 or 0.2 < np.isfinite(expected[:, 0]).mean() < 1
