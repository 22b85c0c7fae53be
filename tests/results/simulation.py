"""Two correlated codecs on the same images, whose true scores and BD-rates are known; one curve saturates."""

import numpy as np

from icmbench.results.bd import bd_rate
from icmbench.results.bootstrap import Point

RATES = {"anchor": np.array([0.05, 0.1, 0.2, 0.4, 0.8]), "test": np.array([0.04, 0.08, 0.16, 0.5, 1.2])}
# The test codec is better, and its last two points lie on the plateau.
KNEE = {"anchor": 0.12, "test": 0.075}
METRIC = "top1"


def draw_images(n, rng):
    """n images: complexity (scales rate), pixels, difficulty (mean 0), and two uniform numbers that decide if a model is right."""
    return {
        "complexity": np.exp(rng.normal(0, 0.5, n)),
        "pixels": rng.choice([320 * 240, 640 * 480, 1024 * 768], n).astype(float),
        "difficulty": rng.normal(0, 1, n),
        "u": rng.random(n),
        "v": rng.random(n),
    }


def simulate_points(images):
    """(codec, rate index, bits, correct as 0 or 1) of each point: the codecs share difficulty, complexity and most of the luck."""
    for codec, rates in RATES.items():
        luck = images["u"] if codec == "anchor" else np.where(images["v"] < 0.8, images["u"], images["v"] / 0.2 - 4)
        for k, rate in enumerate(rates):
            chance = 0.76 / (1 + np.exp(-2.5 * (np.log(rate / KNEE[codec]) - 0.6 * images["difficulty"])))
            yield codec, k, rate * images["complexity"] * images["pixels"], (luck < chance).astype(float)


def bootstrap_points(images):
    return [
        Point(codec, str(k), lambda weights, right=right: {METRIC: 100 * weights @ right / weights.sum()}, bits, images["pixels"])
        for codec, k, bits, right in simulate_points(images)
    ]


def true_values(n=4_000_000):
    """Scores by (codec, point), BD-rate and BD-quality of the population, estimated from n images."""
    images = draw_images(n, np.random.default_rng(1))
    scores, curves = {}, {"anchor": [], "test": []}
    for codec, k, bits, right in simulate_points(images):
        scores[codec, str(k)] = 100 * right.mean()
        curves[codec].append((bits.sum() / images["pixels"].sum(), scores[codec, str(k)]))
    result = bd_rate(curves["anchor"], curves["test"])
    return scores, result.bd_rate_percent, result.bd_quality
