"""FID and KID: how far the reconstructions are from the originals as distributions of patches.

    originals -------> 256 x 256 patches -> Inception features --+
    reconstructions -> 256 x 256 patches -> Inception features --+-> FID and KID of the two sets

Patches are cut as in HiFiC (Mentzer et al. 2020): a grid without overlap from the upper left corner, and, if both sides have at
least one and a half patches, a second grid that is shifted by half a patch along both axes. The originals' features are computed
and stored once, as the predictions on the uncompressed images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import Dataset, Image, MetricSpec, Prediction, Target, Task, file_sha256, fingerprint
from icmbench.tasks.models.batches import chunks
from icmbench.tasks.models.devices import Device
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.hub import versions
from icmbench.tasks.outputs import RowOutput

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

Floats = npt.NDArray[np.float64]
WEIGHTS_FILE = "weights-inception-2015-12-05-6726825d.pth"
DIMENSIONS = 2048
SUBSETS, SUBSET_SIZE, SEED = 100, 1000, 2020  # Of KID, as torch-fidelity draws its subsets.


@dataclass(frozen=True)
class PatchFeatures:
    """Features of both sets of patches.

    Attributes:
        images: number of images.
        image: int64 (n,), the image that a patch is cut from; the same for both sets.
        original: float64 (n, 2048), features of the originals' patches.
        coded: float64 (n, 2048), features of the reconstructions' patches.
    """

    images: int
    image: npt.NDArray[np.int64]
    original: Floats
    coded: Floats


def patches(image: Image, size: int = 256) -> Iterator[Image]:
    """Cut an image into patches.

    Args:
        image: uint8 (height, width, 3).
        size: pixels of a patch's side.

    Yields:
        uint8 (size, size, 3), views of the image; nothing if a side is smaller than a patch.
    """
    height, width = image.shape[:2]
    shifts = [0] if min(height, width) < size + size // 2 else [0, size // 2]
    for shift in shifts:
        for top in range(shift, height - size + 1, size):
            for left in range(shift, width - size + 1, size):
                yield image[top : top + size, left : left + size]


def fid(first: Floats, second: Floats) -> float:
    """Frechet distance of the Gaussians fitted to two sets of features (Heusel et al. 2017, eq. 6).

    With covariances A A' and B B', the trace of the root of their product is the sum of the singular values of A'B. This needs no
    matrix root, which is unstable if there are fewer patches than dimensions.

    Args:
        first: float64 (n, d).
        second: float64 (m, d).
    """
    means = [features.mean(axis=0) for features in (first, second)]
    factors = [_covariance_factor(features) for features in (first, second)]
    traces = sum(float((factor**2).sum()) for factor in factors)
    cross = float(np.linalg.svd(factors[0].T @ factors[1], compute_uv=False).sum())
    return float(((means[0] - means[1]) ** 2).sum()) + traces - 2 * cross


def _covariance_factor(features: Floats) -> Floats:
    """A (d, k) such that A A' is the covariance; k is the smaller of n and d."""
    centred = (features - features.mean(axis=0)).T / np.sqrt(len(features) - 1)
    if centred.shape[1] <= centred.shape[0]:
        return centred
    values, vectors = np.linalg.eigh(centred @ centred.T)
    return vectors * np.sqrt(np.maximum(values, 0))


def kid(first: Floats, second: Floats) -> float:
    """Kernel distance of two sets of features (Binkowski et al. 2018): unbiased MMD with the kernel (x'y / d + 1)^3.

    The mean over 100 pairs of subsets, drawn as torch-fidelity draws them, of 1,000 features or as many as the smaller set has. Two
    sets of one size of at most 1,000 are compared whole.

    Args:
        first: float64 (n, d).
        second: float64 (m, d).
    """
    size = min(SUBSET_SIZE, len(first), len(second))
    if size == len(first) == len(second):
        return _mmd(first, second)
    random = np.random.RandomState(SEED)
    return float(
        np.mean(
            [
                _mmd(first[random.choice(len(first), size, replace=False)], second[random.choice(len(second), size, replace=False)])
                for _ in range(SUBSETS)
            ]
        )
    )


def _mmd(first: Floats, second: Floats) -> float:
    count = len(first)
    (xx, yy, xy) = ((a @ b.T / a.shape[1] + 1) ** 3 for a, b in ((first, first), (second, second), (first, second)))
    within = xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)
    return float(within / (count * (count - 1)) - 2 * xy.mean())


class Distribution(Task):
    """FID and KID of the reconstructions' 256 x 256 patches against the originals', by torch-fidelity's Inception.

    Args:
        dataset: any dataset; images smaller than a patch take no part.
        path: a file with the weights; None downloads them.
        device: where the network runs.
        batch_size: patches of one image per pass of the network, at most.
    """

    name = "distribution"
    has_pseudo_labels = True
    extra: ClassVar[str] = "distribution"
    weights: ClassVar[str] = f"torch-fidelity's Inception, {WEIGHTS_FILE} (Apache-2.0), downloaded from its release, or `path`"
    metrics = (
        MetricSpec("fid", higher_is_better=False, primary=True, ceiling=0.0, bootstrap=False),
        MetricSpec("kid", higher_is_better=False, ceiling=0.0, bootstrap=False),
    )

    def __init__(self, dataset: Dataset, path: Path | None = None, device: Device = "cpu", batch_size: int = 16) -> None:
        super().__init__(dataset, reference="original")
        self.path, self.device, self.batch_size = path, device, batch_size

    @cached_property
    def network(self) -> torch.nn.Module:
        """The Inception network, loaded at the first call.

        Raises:
            ModelError: the weights cannot be downloaded or read.
        """
        import torch
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        try:
            if self.path is not None:
                # torch-fidelity's own loader can run code that is hidden in a file. This call refuses everything but tensors.
                torch.load(self.path, map_location="cpu", weights_only=True)
            network = FeatureExtractorInceptionV3(
                "inception", [str(DIMENSIONS)], feature_extractor_weights_path=None if self.path is None else str(self.path)
            )
        except OSError as error:
            raise ModelError(
                f"fid and kid need the weights of torch-fidelity's Inception, which cannot be loaded ({error}): get "
                f"{WEIGHTS_FILE} from the project's release v0.2.0 and give it as `path`"
            ) from error
        except (RuntimeError, AttributeError, EOFError, UnpicklingError) as error:
            raise ModelError(f"{self.path}: no weights of torch-fidelity's Inception ({str(error).splitlines()[0]})") from error
        return network.eval().to(self.device)

    @property
    def schema(self) -> pa.Schema:
        """`features`, flat."""
        import pyarrow as pa

        return pa.schema([("features", pa.list_(pa.float32()))])

    @property
    def fingerprint(self) -> str:
        """Task, version, weights and library versions."""
        weights = file_sha256(self.path) if self.path else WEIGHTS_FILE
        return fingerprint(task=self.name, version=self.version, weights=weights, **versions("torch", "torch-fidelity"))

    def predict(self, images: Sequence[Image], ids: Sequence[str], originals: Sequence[Image] | None = None) -> list[Prediction]:
        """`features`: float32, (patches, 2048) flat; empty if the image is smaller than a patch.

        Raises:
            ModelError: a feature is not finite.
        """
        # The size of a batch changes the last bits of features, so patches of two images never share one.
        return [{"features": self._features(list(patches(image)), image_id)} for image, image_id in zip(images, ids, strict=True)]

    def _features(self, image_patches: Sequence[Image], image_id: str) -> npt.NDArray[np.float32]:
        """The features of one image's patches, float32, flat."""
        import torch

        rows = [np.zeros((0, DIMENSIONS), np.float32)]
        for batch in chunks(image_patches, self.batch_size):
            pixels = torch.from_numpy(np.stack(batch).transpose(0, 3, 1, 2)).to(self.device)
            with torch.inference_mode():
                features = self.network(pixels)[0].float().cpu().numpy()
            rows.append(RowOutput("Inception").rows("features", features, [image_id] * len(batch), DIMENSIONS))
        return np.concatenate(rows).ravel()

    def is_empty(self, prediction: Prediction) -> bool:
        """Whether the image is smaller than a patch, so that it takes no part."""
        return len(prediction["features"]) == 0

    def pseudo_targets(self, predictions: Sequence[Prediction]) -> list[Target]:
        """The features of the originals."""
        return list(predictions)

    def statistics(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> PatchFeatures:
        """Features of the reconstructions and of the originals."""
        coded, original = ([_patch_rows(columns) for columns in rows] for rows in (predictions, targets))
        image = np.repeat(np.arange(len(coded)), [len(rows) for rows in coded])
        return PatchFeatures(len(coded), image, np.concatenate(original), np.concatenate(coded))

    def aggregate(self, statistics: PatchFeatures, weights: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
        """FID and KID.

        Args:
            statistics: features of both sets.
            weights: whole numbers (images,), how often an image's patches are in both sets; None counts each image once.

        Returns:
            `fid` and `kid`; NaN if there are fewer than two patches, or if a feature is not finite.
        """
        s = statistics
        original, coded = s.original, s.coded
        if weights is not None:
            times = np.asarray(weights).astype(np.int64)[s.image]
            original, coded = np.repeat(original, times, axis=0), np.repeat(coded, times, axis=0)
        if len(coded) < 2 or not (np.isfinite(original).all() and np.isfinite(coded).all()):
            return {"fid": float("nan"), "kid": float("nan")}
        return {"fid": fid(original, coded), "kid": kid(original, coded)}


def _patch_rows(columns: Any) -> Floats:
    """The features of a prediction or target, float64 (patches, 2048)."""
    return np.asarray(columns["features"], dtype=np.float64).reshape(-1, DIMENSIONS)
