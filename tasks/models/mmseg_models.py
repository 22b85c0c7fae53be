"""mmsegmentation's semantic segmenters, by one of its configurations and a checkpoint."""

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
from icmbench.tasks.models.arrays import NUMPY
from icmbench.tasks.models.batches import by_shape
from icmbench.tasks.models.devices import Device
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.hub import require, versions


class MMSegmenter:
    """Every semantic segmenter of mmsegmentation: UPerNet, SegFormer, Mask2Former, Segmenter and others.

    Each image gives a label map int32 (height, width) into `categories`, by the configuration's test pipeline and test mode (whole
    image or sliding window).

    zoo: a configuration that the package carries, e.g. upernet/upernet_r50_4xb4-160k_ade20k-512x512; or config: your own file.
    Either is Python and runs. path: the checkpoint that belongs to it.
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
        from mmengine.config import Config

        if self.file is not None:
            return Config.fromfile(str(self.file))
        configs = Path(str(files("mmseg"))) / ".mim/configs"
        file = configs / f"{str(self.zoo).removesuffix('.py')}.py"
        if not file.is_file():
            family = ", ".join(sorted(one.stem for one in file.parent.glob("*.py"))) or "no such folder"
            raise ModelError(f"zoo: mmsegmentation carries no configuration {self.zoo!r}; known there: {family}")
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
        """Names by label, from the dataset that the configuration names."""
        import mmseg.datasets  # noqa: F401  registers them
        from mmseg.registry import DATASETS

        kind = self.config.test_dataloader.dataset.type
        known = DATASETS.get(kind) if isinstance(kind, str) else kind
        if known is None:
            raise ModelError(f"{self.zoo or self.file}: mmsegmentation has no dataset {kind!r} to take category names from")
        return list(known.METAINFO["classes"])

    @cached_property
    def network(self) -> Any:
        """Built and loaded at the first call. Raises ModelError where the weights do not fill the network."""
        from mmengine.model import revert_sync_batchnorm
        from mmseg.apis import init_model

        network = init_model(self.config.copy(), None, device="cpu")
        if self.device == "cpu":
            network = revert_sync_batchnorm(network)
        state = read_state(self.path)
        try:
            report = network.load_state_dict(state, strict=False)
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip()  # the first line only names the class
            raise ModelError(f"{self.path}: these are no weights of this configuration ({reason})") from error
        if report.missing_keys:
            absent = f"{len(report.missing_keys)} weights are not in this checkpoint, such as {report.missing_keys[0]}"
            raise ModelError(f"{self.path}: {absent}")
        return network.to(self.device).eval()

    def __call__(self, images: Sequence[Image]) -> list[npt.NDArray[np.int32]]:
        return by_shape(images, self.batch_size, self._label)

    def _label(self, images: list[Image]) -> list[npt.NDArray[np.int32]]:
        from mmseg.apis import inference_model

        found = inference_model(self.network, [np.ascontiguousarray(image[:, :, ::-1]) for image in images])  # it reads BGR
        return [one.pred_sem_seg.data[0].cpu().numpy().astype(np.int32) for one in found]


def read_state(path: Path) -> dict[str, Any]:
    """Tensors by name, from a checkpoint; nothing in it can run code.

    A training run's checkpoint holds its log too, as mmengine's HistoryBuffer whose pickle calls `getattr`. Both are read as
    empty stand-ins and dropped.
    """
    import torch

    log = {"mmengine.logging.history_buffer.HistoryBuffer": _Log, "builtins.getattr": _no_attribute}
    try:
        with torch.serialization.safe_globals([(stand_in, name) for name, stand_in in {**NUMPY, **log}.items()]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        state = loaded.get("state_dict", loaded)
        return {name.removeprefix("module."): value for name, value in state.items()}
    except (UnpicklingError, RuntimeError, EOFError, AttributeError) as error:
        raise ModelError(f"{path}: this is no checkpoint of mmsegmentation; save its `state_dict` alone if it is one") from error


class _Log:
    """Stands where a training log was."""


def _no_attribute(owner: Any, name: str) -> None:
    """Stands where a training log names its methods."""
