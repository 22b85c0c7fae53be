"""torchvision's detectors, semantic segmenters and classifiers, with the preprocessing that belongs to their weights.

`architecture` is a name of `torchvision.models.list_models()`, `weights` one of its weight sets ("DEFAULT" is the newest).
Weights come from torchvision's own download, or from `path`, a state dict of that weight set's layout.
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

SERVES = {"maskrcnn": ("detection", "instance_segmentation"), "keypointrcnn": ("keypoints",)}


class _Torchvision:
    """What the three share: one architecture, one weight set, one file."""

    extra: ClassVar[str] = "torchvision"
    weights: ClassVar[str] = "torchvision's own (BSD-3 code; trained on COCO or ImageNet), downloaded by name, or `path` to a .pth"
    module: ClassVar[str]  # where torchvision keeps this family

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
        """The weight set: its file, its preprocessing, its categories."""
        from importlib import import_module

        from torchvision.models import get_model_weights, list_models

        known = list_models(module=import_module(self.module))
        if self.architecture not in known:
            raise ModelError(f"architecture: torchvision has no {self.architecture!r} in {self.module}; known: {', '.join(known)}")
        sets = get_model_weights(self.architecture).__members__
        if self.weight_set not in sets:
            raise ModelError(f"weights: {self.architecture} has no {self.weight_set!r}; known: {', '.join(sets)}")
        return sets[self.weight_set]

    @property
    def categories(self) -> list[str]:
        """Names by class index, with torchvision's own "__background__" and "N/A" entries."""
        return list(self.entry.meta["categories"])

    @cached_property
    def network(self) -> torch.nn.Module:
        """Built and loaded at the first call."""
        import torch
        from torchvision.models import get_model

        with _state_dict_from(self.path, self.entry):
            network = get_model(self.architecture, weights=self.entry, progress=False, **self.settings)
        return network.eval().to(self.device, getattr(torch, self.dtype))

    def facts(self) -> dict[str, Any]:
        return {
            "architecture": self.architecture,
            "weights": self.entry.name,  # decides the preprocessing too
            "file": file_sha256(self.path) if self.path else self.entry.url.rsplit("/")[-1],  # which ends in its hash
            "dtype": self.dtype,
            "settings": self.settings,
            **versions("torch", "torchvision"),
        }


class TorchvisionDetector(_Torchvision):
    """Faster, Mask and Keypoint R-CNN, RetinaNet, FCOS, SSD and SSDLite of torchvision.

    Each image gives `boxes` float32 (n, 4) as x1, y1, x2, y2 in its pixels, `scores` float32 (n,), `classes` int64 (n,) into
    `categories`; Mask R-CNN adds `masks` (COCO run lengths, probability over 0.5), Keypoint R-CNN `keypoints` float32 (n, 17, 3)
    as x, y, score in COCO's order.

    score_threshold: boxes at or below are dropped; None keeps the architecture's own. settings: the builder's arguments.
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
        self.task = SERVES.get(architecture.split("_")[0], ("detection",))

    @property
    def fingerprint(self) -> str:
        return fingerprint(model="torchvision-detection", score_threshold=self.score_threshold, **self.facts())

    @cached_property
    def network(self) -> torch.nn.Module:
        network = super().network
        if self.score_threshold is not None:  # the two-stage detectors keep it in their heads
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

    Each image gives a label map uint8 (height, width) into `categories`: logits are upsampled bilinearly to the image's size
    (`align_corners=False`) before the argmax.
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
        return fingerprint(model="torchvision-semantic", **self.facts())

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

    Images give logits float32 (n, classes) into `categories`. Weight sets differ in preprocessing: resnet50's IMAGENET1K_V1
    resizes to 256, its IMAGENET1K_V2 to 232.
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
        return fingerprint(model="torchvision-classification", **self.facts())

    def __call__(self, images: Sequence[Image]) -> npt.NDArray[np.float32]:
        import torch

        transform = self.entry.transforms()
        scores = np.zeros((len(images), len(self.categories)), np.float32)
        for start, some in zip(range(0, len(images), self.batch_size), chunks(images, self.batch_size)):
            inputs = torch.stack([transform(picture(image)) for image in some]).to(self.device, getattr(torch, self.dtype))
            with torch.inference_mode():
                scores[start : start + len(some)] = self.network(inputs).float().cpu().numpy()
        return scores


def _instances(output: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """One image's detections in this project's names."""
    found: dict[str, Any] = {
        "boxes": output["boxes"].astype(np.float32),
        "scores": output["scores"].astype(np.float32),
        "classes": output["labels"].astype(np.int64),
    }
    if "masks" in output:
        found["masks"] = encode_masks(output["masks"][:, 0] > 0.5)
    if "keypoints" in output:  # whose third column is a constant 1, the scores stand apart
        found["keypoints"] = np.concatenate(
            [output["keypoints"][..., :2], output["keypoints_scores"][..., None]], -1, dtype=np.float32
        )
    return found


@contextmanager
def _state_dict_from(path: Path | None, entry: WeightsEnum) -> Iterator[None]:
    """Lets torchvision's builder read a local file where it would download one.

    The builder sets more than weights (COCO_V1 needs frozen norms with eps 0, segmenters an auxiliary head), so it must know
    the weight set even where the file is ours. The method is shadowed on this one member, for as long as the builder runs.
    """
    import torch

    def state_dict(*_: Any, **__: Any) -> Any:
        if path:
            return torch.load(path, map_location="cpu", weights_only=True)
        return torch.hub.load_state_dict_from_url(entry.url, map_location="cpu", progress=False, check_hash=True, weights_only=True)

    entry.get_state_dict = state_dict  # type: ignore[method-assign]
    try:
        yield
    except OSError as error:
        place = Path(torch.hub.get_dir()) / "checkpoints" / entry.url.rsplit("/")[-1]
        raise ModelError(
            f"cannot load the weights of {entry} ({error}): put the file at {place} (TORCH_HOME), or give `path`"
        ) from error
    except (RuntimeError, KeyError, EOFError, UnpicklingError) as error:  # the last is what `weights_only` refuses with
        raise ModelError(f"{path or entry}: these are no weights of {entry} ({str(error).splitlines()[0]})") from error
    finally:
        del entry.get_state_dict
