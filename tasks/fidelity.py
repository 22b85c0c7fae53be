"""Fidelity to the original: PSNR and MS-SSIM, averaged over images.

(original, reconstruction) -> PSNR and MS-SSIM of the pair -> mean
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import Dataset, Image, MetricSpec, Prediction, Target, Task, fingerprint, image_weights
from icmbench.tasks.outputs import ModelOutput

if TYPE_CHECKING:
    import pyarrow as pa

MS_SSIM_SIDE = 161  # Five scales of an 11-pixel window need a shorter side of more than (11 - 1) * 2**4.


def psnr(original: Image, image: Image) -> float:
    """Peak signal-to-noise ratio over all samples.

    Equal images have no finite PSNR, and infinity has no mean. They count as if one sample were off by one, which is the best that
    unequal images can reach.

    Args:
        original: uint8 (height, width, 3).
        image: uint8 of the same shape.

    Returns:
        dB.

    Example:
        >>> original = np.full((2, 2, 3), 100, np.uint8)
        >>> round(psnr(original, original + np.uint8(5)), 2)
        34.15
    """
    error = original.astype(np.int32) - image
    return 10 * math.log10(255**2 * error.size / max(1, int((error * error).sum(dtype=np.int64))))


def ms_ssim(original: Image, image: Image) -> float | None:
    """MS-SSIM (Wang, Simoncelli, Bovik 2003), the mean over the channels, by pytorch-msssim in float32.

    Args:
        original: uint8 (height, width, 3).
        image: uint8 of the same shape.

    Returns:
        At most 1; None if the shorter side is under 161 pixels, because the five scales are not defined there.
    """
    if min(original.shape[:2]) < MS_SSIM_SIDE:
        return None
    import torch
    from pytorch_msssim import ms_ssim as multiscale

    first, second = (torch.from_numpy(x.transpose(2, 0, 1)[None].astype(np.float32)) for x in (original, image))
    with torch.inference_mode():
        return float(multiscale(first, second, data_range=255))


class Fidelity(Task):
    """PSNR (RGB) and MS-SSIM against the original, means over images."""

    name = "fidelity"
    needs_originals = True
    extra: ClassVar[str] = "fidelity"
    metrics = (MetricSpec("psnr", "dB", primary=True), MetricSpec("ms_ssim", ceiling=1.0))

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)

    @property
    def schema(self) -> pa.Schema:
        """`psnr` and `ms_ssim`."""
        import pyarrow as pa

        return pa.schema([("psnr", pa.float64()), ("ms_ssim", pa.float64())])

    @property
    def fingerprint(self) -> str:
        """Task and version."""
        return fingerprint(task=self.name, version=self.version)

    def predict(self, images: Sequence[Image], ids: Sequence[str], originals: Sequence[Image] | None = None) -> list[Prediction]:
        """`psnr` in dB, and `ms_ssim`, which is null if the image is too small for it.

        Raises:
            ModelError: an MS-SSIM is not finite.
        """
        assert originals is not None
        predictions: list[Prediction] = []
        for original, image, image_id in zip(originals, images, ids, strict=True):
            similarity = ms_ssim(original, image)
            if similarity is not None:  # NaN would be left out of the mean like null.
                similarity = ModelOutput("pytorch-msssim").finite("MS-SSIM", similarity, image_id)
            predictions.append({"psnr": psnr(original, image), "ms_ssim": similarity})
        return predictions

    def is_empty(self, prediction: Prediction) -> bool:
        """Whether the image is too small for MS-SSIM; such images are left out of its mean."""
        return prediction["ms_ssim"] is None

    def statistics(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> npt.NDArray[np.float64]:
        """float64 (images, 2): psnr and ms_ssim, NaN for null."""
        return np.array([(p["psnr"], p["ms_ssim"]) for p in predictions], dtype=np.float64).reshape(-1, 2)

    def aggregate(self, statistics: npt.NDArray[np.float64], weights: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
        """Means over the images that have a value; NaN if none has."""
        counted = image_weights(weights, len(statistics))
        shares = counted[:, None] * ~np.isnan(statistics)
        sums, totals = np.nansum(statistics * counted[:, None], axis=0), shares.sum(axis=0)
        values = np.divide(sums, totals, out=np.full(2, np.nan), where=totals > 0)
        return {spec.name: float(value) for spec, value in zip(self.metrics, values)}
