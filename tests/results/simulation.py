"""Two correlated codecs on the same images, one curve saturating, whose true scores and BD-rates are known."""

import numpy as np

from icmbench.results.bd import bd_rate
from icmbench.results.bootstrap import Point

RATES = {"anchor": np.array([0.05, 0.1, 0.2, 0.4, 0.8]), "test": np.array([0.04, 0.08, 0.16, 0.5, 1.2])}
KNEE = {"anchor": 0.12, "test": 0.075}  # the test codec is better and its last two points lie on the plateau
METRIC = "top1"


def images(n, rng):
    """Per image: complexity (rate), pixels, difficulty (mean 0), and a uniform number that decides at a given probability."""
    return {
        "complexity": np.exp(rng.normal(0, 0.5, n)),
        "pixels": rng.choice([320 * 240, 640 * 480, 1024 * 768], n).astype(float),
        "difficulty": rng.normal(0, 1, n),
        "u": rng.random(n),
        "v": rng.random(n),
    }


def points(drawn):
    """(codec, rate index, bits, correct in 0 or 1) of each point: the codecs share difficulty, complexity and most of the luck."""
    for codec, rates in RATES.items():
        luck = drawn["u"] if codec == "anchor" else np.where(drawn["v"] < 0.8, drawn["u"], drawn["v"] / 0.2 - 4)
        for k, rate in enumerate(rates):
            chance = 0.76 / (1 + np.exp(-2.5 * (np.log(rate / KNEE[codec]) - 0.6 * drawn["difficulty"])))
            yield codec, k, rate * drawn["complexity"] * drawn["pixels"], (luck < chance).astype(float)


def bootstrap_points(drawn):
    return [
        Point(codec, str(k), lambda weights, right=right: {METRIC: 100 * weights @ right / weights.sum()}, bits, drawn["pixels"])
        for codec, k, bits, right in points(drawn)
    ]


def truth(n=4_000_000):
    """Scores by (codec, point), BD-rate and BD-quality of the population."""
    drawn = images(n, np.random.default_rng(1))
    scores, curves = {}, {"anchor": [], "test": []}
    for codec, k, bits, right in points(drawn):
        scores[codec, str(k)] = 100 * right.mean()
        curves[codec].append((bits.sum() / drawn["pixels"].sum(), scores[codec, str(k)]))
    result = bd_rate(curves["anchor"], curves["test"])
    return scores, result.bd_rate_percent, result.bd_quality
