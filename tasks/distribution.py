"""FID and KID: how far the reconstructions are from the originals as distributions of patches.

    originals -------> 256 x 256 patches -> Inception features --+
    reconstructions -> 256 x 256 patches -> Inception features --+-> FID and KID of the two sets

Patches are those of HiFiC (Mentzer et al. 2020): a grid without overlap from the upper left corner, and a second one shifted by
half a patch in both axes where both sides have at least a patch and a half. The originals' features are computed and stored once,
as the predictions on the uncompressed images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import Dataset, Image, MetricSpec, Prediction, Target, Task, file_sha256, fingerprint
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.hub import versions

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

Floats = npt.NDArray[np.float64]
WEIGHTS_FILE = "weights-inception-2015-12-05-6726825d.pth"
DIMENSIONS = 2048
SUBSETS, SUBSET_SIZE, SEED = 100, 1000, 2020  # of KID, as torch-fidelity draws them


@dataclass(frozen=True)
class PatchFeatures:
    """Features of both sets of patches, float64 (n, 2048). image: whose patch each is, the same for both."""

    images: int
    image: npt.NDArray[np.int64]
    original: Floats
    coded: Floats


def patches(image: Image, size: int = 256) -> Iterator[Image]:
    """The patches (size, size, 3) of an image; none where a side is smaller."""
    height, width = image.shape[:2]
    shifts = [0] if min(height, width) < size + size // 2 else [0, size // 2]
    for shift in shifts:
        for top in range(shift, height - size + 1, size):
            for left in range(shift, width - size + 1, size):
                yield image[top : top + size, left : left + size]


def fid(first: Floats, second: Floats) -> float:
    """Frechet distance of the Gaussians fitted to features (n, d) and (m, d) (Heusel et al. 2017, eq. 6).

    With covariances A A' and B B', the trace of the root of their product is the sum of the singular values of A'B. This needs
    no matrix root, which is unstable where there are fewer patches than dimensions.
    """
    means, roots = [features.mean(axis=0) for features in (first, second)], [_root(first), _root(second)]
    traces = sum(float((root**2).sum()) for root in roots)
    cross = float(np.linalg.svd(roots[0].T @ roots[1], compute_uv=False).sum())
    return float(((means[0] - means[1]) ** 2).sum()) + traces - 2 * cross


def _root(features: Floats) -> Floats:
    """A (d, k) with A A' the covariance; k is the smaller of n and d."""
    centred = (features - features.mean(axis=0)).T / np.sqrt(len(features) - 1)
    if centred.shape[1] <= centred.shape[0]:
        return centred
    values, vectors = np.linalg.eigh(centred @ centred.T)
    return vectors * np.sqrt(np.maximum(values, 0))


def kid(first: Floats, second: Floats) -> float:
    """Kernel distance of features (n, d) and (m, d) (Binkowski et al. 2018): unbiased MMD with the kernel (x'y / d + 1)^3.

    Mean over 100 subsets of 1,000 drawn as torch-fidelity draws them; of smaller sets, all features at once.
    """
    size = min(SUBSET_SIZE, len(first), len(second))
    if size == len(first) == len(second):
        return _mmd(first, second)
    draw = np.random.RandomState(SEED)
    return float(
        np.mean(
            [
                _mmd(first[draw.choice(len(first), size, replace=False)], second[draw.choice(len(second), size, replace=False)])
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
    """FID and KID of the reconstructions' 256 x 256 patches against the originals', by torch-fidelity's Inception."""

    name = "distribution"
    extra: ClassVar[str] = "distribution"
    weights: ClassVar[str] = f"torch-fidelity's Inception, {WEIGHTS_FILE} (Apache-2.0), downloaded from its release, or `path`"
    metrics = (
        MetricSpec("fid", higher_is_better=False, primary=True, ceiling=0.0, bootstrap=False),
        MetricSpec("kid", higher_is_better=False, ceiling=0.0, bootstrap=False),
    )

    def __init__(
        self, dataset: Dataset, path: Path | None = None, device: Literal["cpu", "cuda"] = "cpu", batch_size: int = 16
    ) -> None:
        """path: the weights' file, instead of a download. batch_size: patches at once."""
        super().__init__(dataset, reference="original")
        self.path, self.device, self.batch_size = path, device, batch_size

    @cached_property
    def network(self) -> torch.nn.Module:
        """Built and loaded at the first call. Raises ModelError."""
        import torch
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        try:
            if self.path is not None:
                # The library reads files in a way that can run code in them; this refuses all but tensors first.
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
        import pyarrow as pa

        return pa.schema([("features", pa.list_(pa.float32()))])

    @property
    def fingerprint(self) -> str:
        weights = file_sha256(self.path) if self.path else WEIGHTS_FILE
        return fingerprint(task=self.name, version=self.version, weights=weights, **versions("torch", "torch-fidelity"))

    def predict(self, images: Sequence[Image], ids: Sequence[str], originals: Sequence[Image] | None = None) -> list[Prediction]:
        """`features`: of the image's patches, (patches, 2048) row by row; empty where it is smaller than a patch."""
        import torch

        cut = [list(patches(image)) for image in images]
        every = [patch for mine in cut for patch in mine]
        rows = [np.zeros((0, DIMENSIONS), np.float32)]
        for start in range(0, len(every), self.batch_size):
            batch = torch.from_numpy(np.stack(every[start : start + self.batch_size]).transpose(0, 3, 1, 2)).to(self.device)
            with torch.inference_mode():
                rows.append(self.network(batch)[0].float().cpu().numpy())
        features = np.split(np.concatenate(rows), np.cumsum([len(mine) for mine in cut])[:-1])
        return [{"features": mine.ravel()} for mine in features]

    def is_empty(self, prediction: Prediction) -> bool:
        """Smaller than a patch, so that it takes no part."""
        return len(prediction["features"]) == 0

    def pseudo_targets(self, predictions: Sequence[Prediction]) -> list[Target]:
        return list(predictions)

    def statistics(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> PatchFeatures:
        coded, original = ([_rows(entry) for entry in entries] for entries in (predictions, targets))
        image = np.repeat(np.arange(len(coded)), [len(rows) for rows in coded])
        return PatchFeatures(len(coded), image, np.concatenate(original), np.concatenate(coded))

    def aggregate(self, statistics: PatchFeatures, weights: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
        """NaN with fewer than two patches. `weights`, whole numbers, say how often an image's patches are in both sets."""
        s = statistics
        original, coded = s.original, s.coded
        if weights is not None:
            times = np.asarray(weights).astype(np.int64)[s.image]
            original, coded = np.repeat(original, times, axis=0), np.repeat(coded, times, axis=0)
        if len(coded) < 2:
            return {"fid": float("nan"), "kid": float("nan")}
        return {"fid": fid(original, coded), "kid": kid(original, coded)}


def _rows(entry: Any) -> Floats:
    return np.asarray(entry["features"], dtype=np.float64).reshape(-1, DIMENSIONS)
