"""detectron2's detectors, instance and panoptic segmenters and keypoint networks, by model zoo name or own configuration.

detectron2 is installed from its sources. Its model zoo module wants setuptools below 81, which is needed here only to look up
the address of weights that are not given as `path`.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from icmbench.tasks.base import Image, file_sha256, fingerprint
from icmbench.tasks.models.arrays import NUMPY
from icmbench.tasks.models.batches import by_shape
from icmbench.tasks.models.devices import Device
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.hub import downloading, versions
from icmbench.tasks.models.masks import encode_masks


class _Detectron2:
    """What the two share: a configuration, its weights, the preprocessing of detectron2's DefaultPredictor."""

    extra: ClassVar[str] = "detectron2"
    weights: ClassVar[str] = "detectron2's model zoo (CC BY-SA 3.0), downloaded by name, or `path` to a .pkl or .pth"

    @classmethod
    def usable(cls) -> str | None:
        """Why it cannot be used here; None where it can. No registry has detectron2, so the extra alone does not tell."""
        return None if find_spec("detectron2") else "needs detectron2, built from source as its own instructions say"

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
        self.config = self._configured(config, settings or {})
        self.config.MODEL.DEVICE = device

    def _configured(self, file: Path | None, settings: Mapping[str, Any]) -> Any:
        from detectron2.config import get_cfg

        name = f"{str(self.zoo).removesuffix('.yaml')}.yaml"
        if file is None:
            zoo = Path(str(files("detectron2"))) / "model_zoo/configs"
            file = zoo / name
            if not file.is_file():
                known = ", ".join(sorted(str(one.relative_to(zoo).with_suffix("")) for one in zoo.glob("COCO-*/*.yaml")))
                raise ModelError(f"zoo: detectron2 has no configuration {name}; known: {known}")
        config = get_cfg()
        try:
            config.merge_from_file(str(file), allow_unsafe=False)
            config.merge_from_list([part for pair in settings.items() for part in pair])
        except (KeyError, AssertionError, ValueError) as error:
            raise ModelError(f"{file}, settings: {error}") from error
        return config

    def facts(self) -> dict[str, Any]:
        neutral = self.config.clone()
        neutral.MODEL.DEVICE = ""
        return {
            "zoo": self.zoo,
            "config": hashlib.sha256(neutral.dump().encode()).hexdigest(),
            "weights": file_sha256(self.path) if self.path else self._url.rsplit("detectron2/")[-1],
            **versions("detectron2", "torch"),
        }

    @cached_property
    def _url(self) -> str:
        try:
            from detectron2.model_zoo import get_checkpoint_url
        except ModuleNotFoundError as error:
            raise ModelError(
                f"detectron2's model zoo needs {error.name}: install setuptools below 81, or give the weights as `path`"
            ) from error
        return str(get_checkpoint_url(f"{str(self.zoo).removesuffix('.yaml')}.yaml"))

    @cached_property
    def metadata(self) -> Any:
        """detectron2's description of the label set that the configuration tests on."""
        from detectron2.data import MetadataCatalog

        return MetadataCatalog.get(self.config.DATASETS.TEST[0])

    @cached_property
    def network(self) -> Any:
        """Built and loaded at the first call. Raises ModelError where the weights do not fill the network."""
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
        absent = [name for name in report.missing_keys if name not in ("pixel_mean", "pixel_std")]  # set by the configuration
        if absent:
            raise ModelError(f"{self.path or self.zoo}: {len(absent)} weights are not in this checkpoint, such as {absent[0]}")
        return network

    def outputs(self, images: Sequence[Image]) -> list[dict[str, Any]]:
        """detectron2's own predictions, prepared as its DefaultPredictor does but several images at a time."""
        import torch
        from detectron2.data.transforms import ResizeShortestEdge

        sizes = self.config.INPUT
        resize = ResizeShortestEdge([sizes.MIN_SIZE_TEST] * 2, sizes.MAX_SIZE_TEST)
        inputs = []
        for image in images:
            pixels = image[:, :, ::-1] if sizes.FORMAT == "BGR" else image
            pixels = resize.get_transform(pixels).apply_image(pixels)
            tensor = torch.as_tensor(pixels.astype("float32").transpose(2, 0, 1))
            inputs.append({"image": tensor, "height": image.shape[0], "width": image.shape[1]})
        with torch.no_grad():
            return list(self.network(inputs))


class Detectron2Instances(_Detectron2):
    """Faster, Mask and Keypoint R-CNN and RetinaNet of detectron2.

    Each image gives `boxes` float32 (n, 4) as x1, y1, x2, y2 in its pixels, `scores` float32 (n,), `classes` int64 (n,) into
    `categories`; with a mask head `masks` (COCO run lengths), with a keypoint head `keypoints` float32 (n, 17, 3) as x, y, score
    in COCO's order.

    zoo: e.g. COCO-Detection/faster_rcnn_R_50_FPN_3x (the papers' detector), COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x,
    COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x.
    settings: keys of the configuration such as {MODEL.ROI_HEADS.SCORE_THRESH_TEST: 0.01}.
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
        return by_shape(images, self.batch_size, lambda some: [_instances(one["instances"]) for one in self.outputs(some)])


class Detectron2Panoptic(_Detectron2):
    """Panoptic FPN of detectron2.

    Each image gives `segments` int32 (height, width) with 0 for void, `segment_ids` int64 (n,), `classes` int64 (n,) into
    `categories`: the things, then the stuff.

    zoo: e.g. COCO-PanopticSegmentation/panoptic_fpn_R_50_3x. settings: keys of the configuration.
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
        """Things, then stuff, by the label set's full names, which detectron2 shortens ("tree" for "tree-merged")."""
        from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

        full = [one["name"] for one in COCO_CATEGORIES if not one["isthing"]]
        names = {name.replace("-other", "").replace("-merged", ""): name for name in full}
        stuff = list(self.metadata.stuff_classes)
        is_coco = set(names) == set(stuff) - {"things"}
        return [*self.metadata.thing_classes, *(names.get(name, name) if is_coco else name for name in stuff)]

    @property
    def is_thing(self) -> list[bool]:
        """By category: countable things (True) or stuff."""
        things = len(self.metadata.thing_classes)
        return [index < things for index in range(len(self.categories))]

    def __call__(self, images: Sequence[Image]) -> list[dict[str, Any]]:
        return by_shape(images, self.batch_size, lambda some: [self._panoptic(*one["panoptic_seg"]) for one in self.outputs(some)])

    def _panoptic(self, segments: Any, about: Sequence[dict[str, Any]]) -> dict[str, Any]:
        things = len(self.metadata.thing_classes)
        classes = [one["category_id"] + (0 if one["isthing"] else things) for one in about]
        return {
            "segments": segments.cpu().numpy().astype(np.int32),
            "segment_ids": np.array([one["id"] for one in about], np.int64),
            "classes": np.array(classes, np.int64),
        }


def read_state(path: Path) -> dict[str, Any]:
    """Tensors by name, from the model zoo's .pkl or a training run's .pth; neither can run code."""
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
    """The model zoo pickles its files; this reads arrays out of them and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in NUMPY:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no array")
        return NUMPY[f"{module}.{name}"]


def _instances(found: Any) -> dict[str, Any]:
    """detectron2's Instances in this project's names."""
    found = found.to("cpu")
    output: dict[str, Any] = {
        "boxes": found.pred_boxes.tensor.numpy().astype(np.float32),
        "scores": found.scores.numpy().astype(np.float32),
        "classes": found.pred_classes.numpy().astype(np.int64),
    }
    if found.has("pred_masks"):
        output["masks"] = encode_masks(found.pred_masks.numpy())
    if found.has("pred_keypoints"):  # continuous coordinates; COCO's annotations, and so its evaluator, are pixel indices
        output["keypoints"] = found.pred_keypoints.numpy().astype(np.float32) - np.array([0.5, 0.5, 0], np.float32)
    return output
