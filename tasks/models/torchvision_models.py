"""Detectors, semantic segmenters and classifiers of torchvision, with the preprocessing that belongs to their weights.

An architecture is a name from `torchvision.models.list_models()`. Each has one weight set or several; "DEFAULT" is the newest. The
weights are downloaded by torchvision, or read from a file that holds a state dict in the layout of the weight set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import Image, file_sha256, fingerprint
from icmbench.tasks.models.batches import by_shape, chunks, picture
from icmbench.tasks.models.devices import Device, Dtype
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.hub import require, versions
from icmbench.tasks.models.masks import encode_masks

if TYPE_CHECKING:
    import torch
    from torchvision.models import WeightsEnum

# Tasks of a detector, by the first word of the architecture's name; the others serve "detection" alone.
DETECTOR_TASKS = {"maskrcnn": ("detection", "instance_segmentation"), "keypointrcnn": ("keypoints",)}


class _Torchvision:
    """Base of the three adapters: an architecture with a weight set."""

    extra: ClassVar[str] = "torchvision"
    weights: ClassVar[str] = "torchvision's own (BSD-3 code; trained on COCO or ImageNet), downloaded by name, or `path` to a .pth"
    module: ClassVar[str]  # torchvision's module with the builders of this family.

    def __init__(
        self,
        architecture: str,
        weight_set: str,
        path: Path | None,
        device: Device,
        dtype: Dtype,
        batch_size: int,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        require("torch", "torchvision")
        self.architecture, self.weight_set, self.path = architecture, weight_set, path
        self.device, self.dtype, self.batch_size, self.settings = device, dtype, batch_size, dict(settings or {})

    @cached_property
    def entry(self) -> WeightsEnum:
        """The weight set, which carries the address of its file, its preprocessing and its categories.

        Raises:
            ModelError: torchvision has no such architecture or weight set.
        """
        from importlib import import_module

        from torchvision.models import get_model_weights, list_models

        architectures = list_models(module=import_module(self.module))
        if self.architecture not in architectures:
            raise ModelError(
                f"architecture: torchvision has no {self.architecture!r} in {self.module}; known: {', '.join(architectures)}"
            )
        sets = get_model_weights(self.architecture).__members__
        if self.weight_set not in sets:
            raise ModelError(f"weights: {self.architecture} has no {self.weight_set!r}; known: {', '.join(sets)}")
        return sets[self.weight_set]

    @property
    def categories(self) -> list[str]:
        """Names by class index as torchvision lists them, including "__background__" and "N/A"."""
        return list(self.entry.meta["categories"])

    @cached_property
    def network(self) -> torch.nn.Module:
        """The network with its weights, loaded when first used.

        Raises:
            ModelError: the weights cannot be read or downloaded, or do not fit the architecture.
        """
        import torch
        from torchvision.models import get_model

        with _state_dict_from(self.path, self.entry):
            network = get_model(self.architecture, weights=self.entry, progress=False, **self.settings)
        return network.eval().to(self.device, getattr(torch, self.dtype))

    def facts(self) -> dict[str, Any]:
        """Entries that all adapters share in their fingerprints: architecture, weights, type, settings and library versions."""
        return {
            "architecture": self.architecture,
            "weights": self.entry.name,  # The weight set decides the preprocessing, even if the weights come from `path`.
            "file": file_sha256(self.path) if self.path else self.entry.url.rsplit("/")[-1],  # The name ends in the file's hash.
            "dtype": self.dtype,
            "settings": self.settings,
            **versions("torch", "torchvision"),
        }


class TorchvisionDetector(_Torchvision):
    """Faster, Mask and Keypoint R-CNN, RetinaNet, FCOS, SSD and SSDLite of torchvision.

    Called on images it returns one mapping per image: `boxes` float32 (n, 4) as x1, y1, x2, y2 in pixels of the image, `scores`
    float32 (n,) and `classes` int64 (n,) as indices into `categories`. Mask R-CNN adds `masks` (n COCO run lengths of the pixels
    with a probability over 0.5), Keypoint R-CNN `keypoints`, float32 (n, 17, 3) as x, y, score in COCO's order.

    Args:
        architecture: name of the architecture.
        weights: name of the weight set; "DEFAULT" is the newest.
        path: file with the weights, instead of a download.
        score_threshold: boxes with this score or a lower one are dropped; from 0 to 1. The architecture's own by default.
        settings: further keywords of torchvision's builder, such as {min_size: 600}.
        device: where the network runs.
        batch_size: largest number of images in a forward pass. It changes results by rounding only.

    Attributes:
        task: the tasks that the architecture serves.

    Raises:
        ModuleNotFoundError: torch or torchvision is not installed.
    """

    task: tuple[str, ...] = ("detection", "instance_segmentation", "keypoints")
    module = "torchvision.models.detection"

    def __init__(
        self,
        architecture: str = "fasterrcnn_resnet50_fpn_v2",
        weights: str = "DEFAULT",
        path: Path | None = None,
        score_threshold: float | None = None,
        settings: dict[str, Any] | None = None,
        device: Device = "cpu",
        batch_size: int = 4,
    ) -> None:
        super().__init__(architecture, weights, path, device, "float32", batch_size, settings)
        self.score_threshold = score_threshold
        self.task = DETECTOR_TASKS.get(architecture.split("_")[0], ("detection",))

    @property
    def fingerprint(self) -> str:
        return fingerprint(model="torchvision-detection", score_threshold=self.score_threshold, **self.facts())

    @cached_property
    def network(self) -> torch.nn.Module:
        """The network with its weights and `score_threshold`, loaded when first used.

        Raises:
            ModelError: the weights cannot be read or downloaded, or do not fit the architecture.
        """
        network = super().network
        if self.score_threshold is not None:  # Two-stage detectors keep the threshold in `roi_heads`.
            getattr(network, "roi_heads", network).score_thresh = self.score_threshold
        return network

    def __call__(self, images: Sequence[Image]) -> list[dict[str, Any]]:
        return by_shape(images, self.batch_size, self._detect)

    def _detect(self, images: list[Image]) -> list[dict[str, Any]]:
        import torch

        transform = self.entry.transforms()
        with torch.inference_mode():
            outputs = self.network([transform(picture(image)).to(self.device) for image in images])
        return [_instances({name: values.cpu().numpy() for name, values in output.items()}) for output in outputs]


class TorchvisionSemantic(_Torchvision):
    """DeepLabV3, FCN and LR-ASPP of torchvision, by the 21 categories of Pascal VOC.

    Called on images it returns one label map per image, uint8 (height, width), of indices into `categories`. Logits are upsampled
    bilinearly to the image's size (`align_corners=False`) before the argmax.

    Args:
        architecture: name of the architecture.
        weights: name of the weight set; "DEFAULT" is the newest.
        path: file with the weights, instead of a download.
        device: where the network runs.
        dtype: type of weights and activations; part of the fingerprint.
        batch_size: largest number of images in a forward pass. It changes results by rounding only.

    Raises:
        ModuleNotFoundError: torch or torchvision is not installed.
    """

    task: ClassVar[str] = "semantic_segmentation"
    module = "torchvision.models.segmentation"

    def __init__(
        self,
        architecture: str = "deeplabv3_resnet50",
        weights: str = "DEFAULT",
        path: Path | None = None,
        device: Device = "cpu",
        dtype: Dtype = "float32",
        batch_size: int = 4,
    ) -> None:
        super().__init__(architecture, weights, path, device, dtype, batch_size)

    @property
    def fingerprint(self) -> str:
        return fingerprint(model="torchvision-semantic", **self.facts(), **versions("pillow"))  # Pillow resizes the images.

    def __call__(self, images: Sequence[Image]) -> list[npt.NDArray[np.uint8]]:
        return by_shape(images, self.batch_size, self._label)

    def _label(self, images: list[Image]) -> list[npt.NDArray[np.uint8]]:
        import torch
        from torch.nn.functional import interpolate

        transform = self.entry.transforms()
        inputs = torch.stack([transform(picture(image)) for image in images]).to(self.device, getattr(torch, self.dtype))
        with torch.inference_mode():
            logits = self.network(inputs)["out"].float()
            maps = interpolate(logits, size=images[0].shape[:2], mode="bilinear", align_corners=False).argmax(1)
        return list(maps.to(torch.uint8).cpu().numpy())


class TorchvisionClassifier(_Torchvision):
    """ImageNet classifiers of torchvision, such as resnet50 and convnext_tiny.

    Called on images it returns logits, float32 (n, classes), by index into `categories`. Weight sets differ in preprocessing:
    IMAGENET1K_V1 of resnet50 resizes to 256, IMAGENET1K_V2 to 232.

    Args:
        architecture: name of the architecture.
        weights: name of the weight set; "DEFAULT" is the newest.
        path: file with the weights, instead of a download.
        device: where the network runs.
        dtype: type of weights and activations; part of the fingerprint.
        batch_size: largest number of images in a forward pass. It changes results by rounding only.

    Raises:
        ModuleNotFoundError: torch or torchvision is not installed.
    """

    task: ClassVar[str] = "classification"
    module = "torchvision.models"

    def __init__(
        self,
        architecture: str = "resnet50",
        weights: str = "DEFAULT",
        path: Path | None = None,
        device: Device = "cpu",
        dtype: Dtype = "float32",
        batch_size: int = 32,
    ) -> None:
        super().__init__(architecture, weights, path, device, dtype, batch_size)

    @property
    def fingerprint(self) -> str:
        return fingerprint(model="torchvision-classification", **self.facts(), **versions("pillow"))  # As above.

    def __call__(self, images: Sequence[Image]) -> npt.NDArray[np.float32]:
        import torch

        transform = self.entry.transforms()
        scores = np.zeros((len(images), len(self.categories)), np.float32)
        for start, batch in zip(range(0, len(images), self.batch_size), chunks(images, self.batch_size)):
            inputs = torch.stack([transform(picture(image)) for image in batch]).to(self.device, getattr(torch, self.dtype))
            with torch.inference_mode():
                scores[start : start + len(batch)] = self.network(inputs).float().cpu().numpy()
        return scores


def _instances(output: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """Convert torchvision's detections on one image to the task's format."""
    detections: dict[str, Any] = {
        "boxes": output["boxes"].astype(np.float32),
        "scores": output["scores"].astype(np.float32),
        "classes": output["labels"].astype(np.int64),
    }
    if "masks" in output:
        detections["masks"] = encode_masks(output["masks"][:, 0] > 0.5)
    if "keypoints" in output:  # The third column of `keypoints` is always 1. The scores are a separate array.
        detections["keypoints"] = np.concatenate(
            [output["keypoints"][..., :2], output["keypoints_scores"][..., None]], -1, dtype=np.float32
        )
    return detections


@contextmanager
def _state_dict_from(path: Path | None, entry: WeightsEnum) -> Iterator[None]:
    """Let torchvision's builder take its weights from a local file, or from a download, without running code of a pickle.

    The builder does more than load weights (with COCO_V1 it sets the eps of frozen norms to 0, for segmenters it adds an auxiliary
    head), so it has to know the weight set even if the file is local. `get_state_dict` of this weight set is replaced while the
    builder runs.

    Args:
        path: local file; None to download the weight set's own.
        entry: the weight set.

    Raises:
        ModelError: the weights cannot be read or downloaded, or do not fit the architecture.
    """
    import torch

    def state_dict(*_: Any, **__: Any) -> Any:
        if path:
            return torch.load(path, map_location="cpu", weights_only=True)
        return torch.hub.load_state_dict_from_url(entry.url, map_location="cpu", progress=False, check_hash=True, weights_only=True)

    entry.get_state_dict = state_dict
    try:
        yield
    except OSError as error:
        cached = Path(torch.hub.get_dir()) / "checkpoints" / entry.url.rsplit("/")[-1]
        raise ModelError(
            f"cannot load the weights of {entry} ({error}): put the file at {cached} (TORCH_HOME), or give `path`"
        ) from error
    except (RuntimeError, KeyError, EOFError, UnpicklingError) as error:  # `weights_only` raises UnpicklingError for other objects.
        raise ModelError(f"{path or entry}: these are no weights of {entry} ({str(error).splitlines()[0]})") from error
    finally:
        del entry.get_state_dict
