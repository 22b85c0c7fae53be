"""Semantic segmenters of mmsegmentation, each given by a configuration and a checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import Image, file_sha256, fingerprint
from icmbench.tasks.models.arrays import NUMPY_GLOBALS
from icmbench.tasks.models.batches import by_shape
from icmbench.tasks.models.devices import Device
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.hub import require, versions


class MMSegmenter:
    """Every semantic segmenter of mmsegmentation: UPerNet, SegFormer, Mask2Former, Segmenter and others.

    Called on images it returns one label map per image, int32 (height, width), of indices into `categories`. The configuration
    decides the preprocessing and whether the network sees the whole image or a sliding window.

    Args:
        path: checkpoint that belongs to the configuration.
        zoo: name of a configuration inside the package, such as upernet/upernet_r50_4xb4-160k_ade20k-512x512.
        config: configuration file of your own, instead of `zoo`. It is Python code, which is run.
        device: where the network runs.
        batch_size: largest number of images in a forward pass. It changes results by rounding only.

    Raises:
        ModelError: both or neither of `zoo` and `config` are given.
        ModuleNotFoundError: torch, mmengine, mmcv or mmseg is not installed.
    """

    task: ClassVar[str] = "semantic_segmentation"
    extra: ClassVar[str] = "mmseg"
    weights: ClassVar[str] = "mmsegmentation's model zoo (Apache-2.0), or your own: `path` to the checkpoint"

    def __init__(
        self,
        path: Path,
        zoo: str | None = None,
        config: Path | None = None,
        device: Device = "cpu",
        batch_size: int = 4,
    ) -> None:
        require("torch", "mmengine", "mmcv", "mmseg")
        if (zoo is None) == (config is None):
            raise ModelError("give either `zoo` (a configuration's name) or `config` (a file)")
        self.path, self.zoo, self.file = path, zoo, config
        self.device, self.batch_size = device, batch_size

    @cached_property
    def config(self) -> Any:
        """The parsed configuration, an mmengine `Config`.

        Raises:
            ModelError: the package has no configuration of the name `zoo`.
        """
        from mmengine.config import Config

        if self.file is not None:
            return Config.fromfile(str(self.file))
        configs = Path(str(files("mmseg"))) / ".mim/configs"
        file = configs / f"{str(self.zoo).removesuffix('.py')}.py"
        if not file.is_file():
            siblings = ", ".join(sorted(path.stem for path in file.parent.glob("*.py"))) or "no such folder"
            raise ModelError(f"zoo: mmsegmentation carries no configuration {self.zoo!r}; known there: {siblings}")
        return Config.fromfile(str(file))

    @property
    def fingerprint(self) -> str:
        resolved = json.dumps(self.config.to_dict(), sort_keys=True, default=str)
        return fingerprint(
            model="mmseg",
            zoo=self.zoo,
            config=hashlib.sha256(resolved.encode()).hexdigest(),
            weights=file_sha256(self.path),
            **versions("mmsegmentation", "mmengine", "torch"),
        )

    @cached_property
    def categories(self) -> list[str]:
        """Names by label, from the dataset that the configuration names.

        Raises:
            ModelError: mmsegmentation has no such dataset.
        """
        import mmseg.datasets  # noqa: F401  The import registers the datasets.
        from mmseg.registry import DATASETS

        dataset_type = self.config.test_dataloader.dataset.type
        dataset = DATASETS.get(dataset_type) if isinstance(dataset_type, str) else dataset_type
        if dataset is None:
            raise ModelError(f"{self.zoo or self.file}: mmsegmentation has no dataset {dataset_type!r} to take category names from")
        return list(dataset.METAINFO["classes"])

    @cached_property
    def network(self) -> Any:
        """The network with its weights, loaded when first used.

        Raises:
            ModelError: the checkpoint cannot be read, or does not fit the configuration.
        """
        from mmengine.model import revert_sync_batchnorm
        from mmseg.apis import init_model

        network = init_model(self.config.copy(), None, device="cpu")
        if self.device == "cpu":
            network = revert_sync_batchnorm(network)
        state = read_state(self.path)
        try:
            report = network.load_state_dict(state, strict=False)
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip()  # The first line only names the class.
            raise ModelError(f"{self.path}: these are no weights of this configuration ({reason})") from error
        if report.missing_keys:
            absent = f"{len(report.missing_keys)} weights are not in this checkpoint, such as {report.missing_keys[0]}"
            raise ModelError(f"{self.path}: {absent}")
        return network.to(self.device).eval()

    def __call__(self, images: Sequence[Image]) -> list[npt.NDArray[np.int32]]:
        return by_shape(images, self.batch_size, self._label)

    def _label(self, images: list[Image]) -> list[npt.NDArray[np.int32]]:
        from mmseg.apis import inference_model

        results = inference_model(self.network, [np.ascontiguousarray(image[:, :, ::-1]) for image in images])  # It expects BGR.
        return [result.pred_sem_seg.data[0].cpu().numpy().astype(np.int32) for result in results]


def read_state(path: Path) -> dict[str, Any]:
    """Read the tensors of a checkpoint without running code that its pickle may hold.

    Checkpoints of training runs also hold logs, mmengine's HistoryBuffer objects, whose pickles call `getattr`. The reader puts
    empty stand-ins for both and drops the logs.

    Args:
        path: file that mmengine or `torch.save` wrote.

    Returns:
        Tensors by name, without the prefix of distributed training.

    Raises:
        ModelError: the file is not a checkpoint of mmsegmentation, or holds other objects than tensors, arrays and logs.
    """
    import torch

    stand_ins = {"mmengine.logging.history_buffer.HistoryBuffer": _Log, "builtins.getattr": _no_attribute}
    try:
        with torch.serialization.safe_globals([(value, name) for name, value in {**NUMPY_GLOBALS, **stand_ins}.items()]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        state = loaded.get("state_dict", loaded)
        return {name.removeprefix("module."): value for name, value in state.items()}
    except (UnpicklingError, RuntimeError, EOFError, AttributeError) as error:
        raise ModelError(f"{path}: this is no checkpoint of mmsegmentation; save its `state_dict` alone if it is one") from error


class _Log:
    """Empty stand-in for mmengine's HistoryBuffer."""


def _no_attribute(owner: Any, name: str) -> None:
    """Stand-in for `getattr`, which the pickle of a HistoryBuffer calls."""
