"""Scores as a run makes them, with the shapes that real curves have."""

import numpy as np
import pandas as pd
import pytest

from icmbench.results.scores import SCORE_COLUMNS, Scores, normalise

# bpp of each codec's points.
RATE = {
    "jpeg": [0.24, 0.35, 0.53, 0.96],
    "webp": [0.12, 0.2, 0.33, 0.55, 0.9],
    "avif": [0.07, 0.13, 0.25, 0.48],
    "diffusion": [0.02, 0.05, 0.1],
}
# The rate that a codec needs for the quality of jpeg, as a share of jpeg's.
EFFICIENCY = {"jpeg": 1.0, "webp": 0.62, "avif": 0.41, "diffusion": 0.16}
# Each metric: (unit, value at no rate, value uncompressed or None, log10 rate of the knee).
AP = {"AP": ("%", 0, 30.96, -0.6), "AP50": ("%", 0, 47.2, -0.65)}
TOP = {"top1": ("%", 0, 90.0, -0.75), "top5": ("%", 0, 97.5, -0.9)}
AGREEMENT = {"AP": ("%", 0, 100.0, -0.3)}
FIDELITY = {"psnr": ("dB", 18, None, 0.3), "ms_ssim": ("", 0.5, 1.0, -0.7), "lpips": ("", 0.8, 0.0, -0.3)}
# (dataset, task, model, reference, number of images, metrics)
TASKS = [
    ("coco", "yolox", "yolox-onnx", "labels", 79, AP),
    ("imagenet", "classification", "efficientnet-lite0", "labels", 200, TOP),
    ("photos", "ssd", "ssd-mobilenet", "original", 24, AGREEMENT),
    ("coco", "fidelity", "", "source", 100, FIDELITY),
    ("photos", "fidelity", "", "source", 24, FIDELITY),
]


def _value(floor: float, ceiling: float | None, knee: float, jpeg_rate: float) -> float:
    """A metric at the quality that jpeg has at a rate: a line without a ceiling, a logistic curve with one."""
    if ceiling is None:
        return floor + 9.5 * (np.log10(jpeg_rate) + 2)
    return floor + (ceiling - floor) / (1 + 10 ** (-3 * (np.log10(jpeg_rate) - knee)))


@pytest.fixture
def plain_scores() -> pd.DataFrame:
    """A frame that was not normalised: four codecs, five tasks, the ceiling, agreement, and three seeds of one codec."""
    rng = np.random.default_rng(3)
    rows = []
    for dataset, task, model, reference, images, metrics in TASKS:
        for codec in ["uncompressed", *RATE]:
            if codec == "uncompressed" and task == "fidelity":
                continue
            for bpp in RATE.get(codec, [None]):
                for seed in range(3 if codec == "diffusion" else 1):
                    for metric, (unit, floor, ceiling, knee) in metrics.items():
                        value = ceiling if bpp is None else _value(floor, ceiling, knee, bpp / EFFICIENCY[codec])
                        if codec == "diffusion":
                            value *= 1 + rng.normal(0, 0.01)
                        rows.append(
                            {
                                **dict.fromkeys(SCORE_COLUMNS),
                                "codec": codec,
                                "point": "-" if bpp is None else f"quality={100 * bpp:g}",
                                "dataset": dataset,
                                "task": task,
                                "model": model,
                                "metric": metric,
                                "value": round(float(value), 6),
                                "unit": unit,
                                "higher_is_better": metric != "lpips",
                                "reference": reference,
                                "realisation": f"seed={seed}" if codec == "diffusion" else "",
                                "bpp": bpp,
                                "mean_image_bpp": None if bpp is None else 1.1 * bpp,
                                "expected": images,
                                "scored": images,
                                "empty": 2 if bpp is not None and bpp < 0.1 else 0,
                                "failed": 0,
                                "limited": False,
                                "encode_seconds": 0.01,
                                "decode_seconds": 0.004,
                                "task_seconds": 0.05,
                            }
                        )
    return pd.DataFrame(rows, columns=SCORE_COLUMNS)


@pytest.fixture
def scores(plain_scores) -> Scores:
    return normalise(plain_scores)


@pytest.fixture
def few(scores) -> Scores:
    """The rows of one task on labels and of one on agreement, for speed."""
    return normalise(scores[scores["task"].isin(["yolox", "ssd"])])
