"""Detectors, instance and panoptic segmenters and keypoint networks of detectron2, by model zoo name or configuration file.

detectron2 has to be built from its sources. Its module `model_zoo` needs setuptools below 81. The adapters import it only to look
up the address of weights that are not given as `path`.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from icmbench.tasks.base import Image, file_sha256, fingerprint
from icmbench.tasks.models.arrays import NUMPY_GLOBALS
from icmbench.tasks.models.batches import by_shape
from icmbench.tasks.models.devices import Device
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.hub import downloading, versions
from icmbench.tasks.models.masks import encode_masks


class _Detectron2:
    """Base of the two adapters: configuration, weights, and the preprocessing of detectron2's DefaultPredictor."""

    extra: ClassVar[str] = "detectron2"
    weights: ClassVar[str] = "detectron2's model zoo (CC BY-SA 3.0), downloaded by name, or `path` to a .pkl or .pth"
    unpackaged: ClassVar[Mapping[str, str]] = {"detectron2": "built from source as its own instructions say"}

    def __init__(
        self,
        zoo: str | None,
        config: Path | None,
        path: Path | None,
        settings: Mapping[str, Any] | None,
        device: Device,
        batch_size: int,
    ) -> None:
        if (zoo is None) == (config is None):
            raise ModelError("give either `zoo` (a model zoo name) or `config` (a YAML file of detectron2)")
        if config is not None and path is None:
            raise ModelError(f"path: {config} needs the weights that belong to it")
        self.zoo, self.path, self.batch_size = zoo, path, batch_size
        self.config = self._build_config(config, settings or {})
        self.config.MODEL.DEVICE = device

    def _build_config(self, file: Path | None, settings: Mapping[str, Any]) -> Any:
        from detectron2.config import get_cfg

        name = f"{str(self.zoo).removesuffix('.yaml')}.yaml"
        if file is None:
            zoo = Path(str(files("detectron2"))) / "model_zoo/configs"
            file = zoo / name
            if not file.is_file():
                names = ", ".join(sorted(str(path.relative_to(zoo).with_suffix("")) for path in zoo.glob("COCO-*/*.yaml")))
                raise ModelError(f"zoo: detectron2 has no configuration {name}; known: {names}")
        config = get_cfg()
        try:
            config.merge_from_file(str(file), allow_unsafe=False)
            config.merge_from_list([part for pair in settings.items() for part in pair])
        except (KeyError, AssertionError, ValueError) as error:
            raise ModelError(f"{file}, settings: {error}") from error
        return config

    def facts(self) -> dict[str, Any]:
        """Entries for the fingerprint: configuration without its device, weights and library versions."""
        without_device = self.config.clone()
        without_device.MODEL.DEVICE = ""
        return {
            "zoo": self.zoo,
            "config": hashlib.sha256(without_device.dump().encode()).hexdigest(),
            "weights": file_sha256(self.path) if self.path else self._url.rsplit("detectron2/")[-1],
            **versions("detectron2", "torch", "pillow"),  # Images are resized by Pillow.
        }

    @cached_property
    def _url(self) -> str:
        """Address of the model zoo's weights for `zoo`."""
        try:
            from detectron2.model_zoo import get_checkpoint_url
        except ModuleNotFoundError as error:
            raise ModelError(
                f"detectron2's model zoo needs {error.name}: install setuptools below 81, or give the weights as `path`"
            ) from error
        return str(get_checkpoint_url(f"{str(self.zoo).removesuffix('.yaml')}.yaml"))

    @cached_property
    def metadata(self) -> Any:
        """detectron2's metadata of the first dataset that the configuration tests on; it names the categories."""
        from detectron2.data import MetadataCatalog

        return MetadataCatalog.get(self.config.DATASETS.TEST[0])

    @cached_property
    def network(self) -> Any:
        """The network with its weights, loaded when first used.

        Raises:
            ModelError: the weights cannot be read or downloaded, or do not fit the configuration.
        """
        from detectron2.modeling import build_model
        from detectron2.utils.file_io import PathManager

        network = build_model(self.config.clone()).eval()
        with downloading(str(self.path or self.zoo), local=self.path is not None):
            state = read_state(self.path or Path(PathManager.get_local_path(self._url)))
        try:
            report = network.load_state_dict(state, strict=False)
        except RuntimeError as error:
            raise ModelError(
                f"{self.path}: these are no weights of this configuration ({str(error).splitlines()[1].strip()})"
            ) from error
        absent = [name for name in report.missing_keys if name not in ("pixel_mean", "pixel_std")]  # The configuration sets these.
        if absent:
            raise ModelError(f"{self.path or self.zoo}: {len(absent)} weights are not in this checkpoint, such as {absent[0]}")
        return network

    def outputs(self, images: Sequence[Image]) -> list[dict[str, Any]]:
        """Run the network with the preprocessing of DefaultPredictor, but on several images at a time.

        Args:
            images: uint8 (height, width, 3) each, all of one shape.

        Returns:
            detectron2's output, one mapping per image.
        """
        import torch
        from detectron2.data.transforms import ResizeShortestEdge

        input_config = self.config.INPUT
        resize = ResizeShortestEdge([input_config.MIN_SIZE_TEST] * 2, input_config.MAX_SIZE_TEST)
        inputs = []
        for image in images:
            pixels = image[:, :, ::-1] if input_config.FORMAT == "BGR" else image
            pixels = resize.get_transform(pixels).apply_image(pixels)
            tensor = torch.as_tensor(pixels.astype("float32").transpose(2, 0, 1))
            inputs.append({"image": tensor, "height": image.shape[0], "width": image.shape[1]})
        with torch.no_grad():
            return list(self.network(inputs))


class Detectron2Instances(_Detectron2):
    """Faster, Mask and Keypoint R-CNN and RetinaNet of detectron2.

    Called on images it returns one mapping per image: `boxes` float32 (n, 4) as x1, y1, x2, y2 in pixels of the image, `scores`
    float32 (n,) and `classes` int64 (n,) as indices into `categories`. A mask head adds `masks` (n COCO run lengths), a keypoint
    head `keypoints`, float32 (n, 17, 3) as x, y, score in COCO's order.

    Args:
        zoo: name in detectron2's model zoo, such as COCO-Detection/faster_rcnn_R_50_FPN_3x (the papers' detector),
            COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x or COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x. MPEG's conditions for
            machines use COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x and COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x.
        config: configuration file of your own, instead of `zoo`.
        path: file with the weights, .pkl or .pth. By default those of `zoo` are downloaded; with `config` it must be given.
        settings: keys of the configuration to change, such as {MODEL.ROI_HEADS.SCORE_THRESH_TEST: 0.01}.
        device: where the network runs.
        batch_size: largest number of images in a forward pass. It changes results by rounding only.

    Attributes:
        task: the tasks that the heads of the configuration serve.

    Raises:
        ModelError: both or neither of `zoo` and `config` are given, `config` is given without `path`, or the configuration or a
            key of it is unknown.
        ModuleNotFoundError: detectron2 is not installed.
    """

    task: tuple[str, ...] = ("detection", "instance_segmentation", "keypoints")

    def __init__(
        self,
        zoo: str | None = None,
        config: Path | None = None,
        path: Path | None = None,
        settings: dict[str, Any] | None = None,
        device: Device = "cpu",
        batch_size: int = 4,
    ) -> None:
        super().__init__(zoo, config, path, settings, device, batch_size)
        heads = self.config.MODEL
        self.task = ("keypoints",) if heads.KEYPOINT_ON else ("detection",) + ("instance_segmentation",) * heads.MASK_ON

    @property
    def fingerprint(self) -> str:
        return fingerprint(model="detectron2-instances", **self.facts())

    @property
    def categories(self) -> list[str]:
        """Names by class index."""
        return list(self.metadata.thing_classes)

    def __call__(self, images: Sequence[Image]) -> list[dict[str, Any]]:
        return by_shape(images, self.batch_size, lambda batch: [_instances(output["instances"]) for output in self.outputs(batch)])


class Detectron2Panoptic(_Detectron2):
    """Panoptic FPN of detectron2.

    Called on images it returns one mapping per image: `segments` int32 (height, width) with a segment id per pixel and 0 for void,
    `segment_ids` int64 (n,) and `classes` int64 (n,) as indices into `categories`, which lists the things before the stuff.

    Args:
        zoo: name in detectron2's model zoo, such as COCO-PanopticSegmentation/panoptic_fpn_R_50_3x.
        config: configuration file of your own, instead of `zoo`.
        path: file with the weights, .pkl or .pth. By default those of `zoo` are downloaded; with `config` it must be given.
        settings: keys of the configuration to change, such as {INPUT.MIN_SIZE_TEST: 640}.
        device: where the network runs.
        batch_size: largest number of images in a forward pass. It changes results by rounding only.

    Raises:
        ModelError: both or neither of `zoo` and `config` are given, `config` is given without `path`, the configuration or a key
            of it is unknown, or its architecture is not Panoptic FPN.
        ModuleNotFoundError: detectron2 is not installed.
    """

    task: ClassVar[str] = "panoptic"

    def __init__(
        self,
        zoo: str | None = None,
        config: Path | None = None,
        path: Path | None = None,
        settings: dict[str, Any] | None = None,
        device: Device = "cpu",
        batch_size: int = 4,
    ) -> None:
        super().__init__(zoo, config, path, settings, device, batch_size)
        if self.config.MODEL.META_ARCHITECTURE != "PanopticFPN":
            raise ModelError(f"zoo, config: {self.config.MODEL.META_ARCHITECTURE} gives no panoptic segmentation")

    @property
    def fingerprint(self) -> str:
        return fingerprint(model="detectron2-panoptic", **self.facts())

    @property
    def categories(self) -> list[str]:
        """Names by class index, things before stuff. COCO's stuff is named as in COCO; detectron2 has "tree" for "tree-merged"."""
        from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

        full_names = [category["name"] for category in COCO_CATEGORIES if not category["isthing"]]
        by_short_name = {name.replace("-other", "").replace("-merged", ""): name for name in full_names}
        stuff = list(self.metadata.stuff_classes)
        is_coco = set(by_short_name) == set(stuff) - {"things"}
        return [*self.metadata.thing_classes, *(by_short_name.get(name, name) if is_coco else name for name in stuff)]

    @property
    def is_thing(self) -> list[bool]:
        """For each category, whether it is a countable thing (True) or stuff (False)."""
        things = len(self.metadata.thing_classes)
        return [index < things for index in range(len(self.categories))]

    def __call__(self, images: Sequence[Image]) -> list[dict[str, Any]]:
        return by_shape(
            images, self.batch_size, lambda batch: [self._panoptic(*output["panoptic_seg"]) for output in self.outputs(batch)]
        )

    def _panoptic(self, segments: Any, descriptions: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Convert detectron2's segment map and descriptions to the task's format."""
        things = len(self.metadata.thing_classes)
        classes = [segment["category_id"] + (0 if segment["isthing"] else things) for segment in descriptions]
        return {
            "segments": segments.cpu().numpy().astype(np.int32),
            "segment_ids": np.array([segment["id"] for segment in descriptions], np.int64),
            "classes": np.array(classes, np.int64),
        }


def read_state(path: Path) -> dict[str, Any]:
    """Read the tensors of a checkpoint without running code that its pickle may hold.

    Args:
        path: .pkl file of the model zoo, or .pth file of a training run.

    Returns:
        Tensors by name.

    Raises:
        ModelError: the file is not a checkpoint of detectron2, or holds objects other than arrays.
    """
    import torch

    try:
        if path.suffix == ".pkl":
            with path.open("rb") as file:
                loaded = _ArraysOnly(file, encoding="latin1").load()
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        state = loaded.get("model", loaded)
        return {name: torch.as_tensor(value) for name, value in state.items()}
    except (pickle.UnpicklingError, AttributeError, EOFError, TypeError, RuntimeError) as error:
        raise ModelError(f"{path}: this is no checkpoint of detectron2 ({str(error).splitlines()[0]})") from error


class _ArraysOnly(pickle.Unpickler):
    """Reader of the model zoo's pickle files that refuses every object but arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in NUMPY_GLOBALS:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no array")
        return NUMPY_GLOBALS[f"{module}.{name}"]


def _instances(instances: Any) -> dict[str, Any]:
    """Convert detectron2's Instances to the task's format."""
    instances = instances.to("cpu")
    output: dict[str, Any] = {
        "boxes": instances.pred_boxes.tensor.numpy().astype(np.float32),
        "scores": instances.scores.numpy().astype(np.float32),
        "classes": instances.pred_classes.numpy().astype(np.int64),
    }
    if instances.has("pred_masks"):
        output["masks"] = encode_masks(instances.pred_masks.numpy())
    if instances.has("pred_keypoints"):
        # detectron2 predicts continuous coordinates, in which the centre of the first pixel is 0.5. COCO uses pixel indices.
        output["keypoints"] = instances.pred_keypoints.numpy().astype(np.float32) - np.array([0.5, 0.5, 0], np.float32)
    return output
