"""A scores frame as a run leaves it, with the shapes that real curves have."""

import numpy as np
import pandas as pd
import pytest

from icmbench.results.scores import SCORES

RATE = {  # codec: bpp of its points
    "jpeg": [0.24, 0.35, 0.53, 0.96],
    "webp": [0.12, 0.2, 0.33, 0.55, 0.9],
    "avif": [0.07, 0.13, 0.25, 0.48],
    "diffusion": [0.02, 0.05, 0.1],
}
EFFICIENCY = {"jpeg": 1.0, "webp": 0.62, "avif": 0.41, "diffusion": 0.16}  # rate for the same quality
AP = {
    "AP": ("%", 0, 30.96, -0.6),
    "AP50": ("%", 0, 47.2, -0.65),
}  # metric: (unit, at no rate, uncompressed, log10 rate of the knee)
TOP = {"top1": ("%", 0, 90.0, -0.75), "top5": ("%", 0, 97.5, -0.9)}
AGREEMENT = {"AP": ("%", 0, 100.0, -0.3)}
FIDELITY = {"psnr": ("dB", 18, None, 0.3), "ms_ssim": ("", 0.5, 1.0, -0.7), "lpips": ("", 0.8, 0.0, -0.3)}
TASKS = [  # dataset, task, model, reference, images, metrics
    ("coco", "yolox", "yolox-onnx", "labels", 79, AP),
    ("imagenet", "classification", "efficientnet-lite0", "labels", 200, TOP),
    ("photos", "ssd", "ssd-mobilenet", "original", 24, AGREEMENT),
    ("coco", "fidelity", "", "source", 100, FIDELITY),
    ("photos", "fidelity", "", "source", 24, FIDELITY),
]


def _value(metric: str, floor: float, top: float | None, knee: float, equivalent: float) -> float:
    if top is None:
        return floor + 9.5 * (np.log10(equivalent) + 2)
    return floor + (top - floor) / (1 + 10 ** (-3 * (np.log10(equivalent) - knee)))


@pytest.fixture
def scores() -> pd.DataFrame:
    """Four codecs, five tasks, the ceiling, agreement, and three seeds of one codec."""
    rng = np.random.default_rng(3)
    rows = []
    for dataset, task, model, reference, images, metrics in TASKS:
        for codec in ["uncompressed", *RATE]:
            if codec == "uncompressed" and task == "fidelity":
                continue
            for bpp in RATE.get(codec, [None]):
                for seed in range(3 if codec == "diffusion" else 1):
                    for metric, (unit, floor, top, knee) in metrics.items():
                        value = top if bpp is None else _value(metric, floor, top, knee, bpp / EFFICIENCY[codec])
                        if codec == "diffusion":
                            value *= 1 + rng.normal(0, 0.01)
                        rows.append(
                            {
                                **dict.fromkeys(SCORES),
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
    return pd.DataFrame(rows, columns=SCORES)


@pytest.fixture
def few(scores) -> pd.DataFrame:
    """One task on labels and one on agreement, for speed."""
    return scores[scores["task"].isin(["yolox", "ssd"])].copy()
