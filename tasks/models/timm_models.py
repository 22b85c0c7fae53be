"""Image classifiers of timm, with the preprocessing of their pretrained configuration."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import Image, file_sha256, fingerprint
from icmbench.tasks.models.batches import chunks, picture
from icmbench.tasks.models.devices import Device, Dtype
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.hub import commit_of, downloading, folder_sha256, require, versions


class TimmClassifier:
    """Every classifier of timm, by a name such as `resnet50.a1_in1k` or `convnext_tiny.fb_in1k`.

    Called on images it returns logits, float32 (n, classes). Images are resized, cropped and normalised as the `pretrained_cfg` of
    the weights says.

    Args:
        architecture: name from `timm.list_models(pretrained=True)`, or `hf-hub:org/model`; leave out if `path` is a folder.
        path: checkpoint file for that architecture, or a folder as timm pushes it to the hub.
        test_size: whether to use the larger resolution that some models declare for testing.
        device: where the network runs.
        dtype: type of weights and activations; part of the fingerprint.
        batch_size: largest number of images in a forward pass. It changes results by rounding only.

    Raises:
        ModelError: `architecture` is missing, or given beside a folder.
        ModuleNotFoundError: torch or timm is not installed.
    """

    task: ClassVar[str] = "classification"
    extra: ClassVar[str] = "timm"
    weights: ClassVar[str] = "timm's own, downloaded by name, or `path` to a checkpoint; licences differ, see each model card"

    def __init__(
        self,
        architecture: str | None = None,
        path: Path | None = None,
        test_size: bool = False,
        device: Device = "cpu",
        dtype: Dtype = "float32",
        batch_size: int = 32,
    ) -> None:
        require("torch", "timm")
        is_folder = path is not None and path.is_dir()
        if (architecture is None) != is_folder:
            raise ModelError("give `architecture`, or a folder with timm's config.json as `path`")
        self.architecture, self.path, self.test_size = architecture, path, test_size
        self.device, self.dtype, self.batch_size = device, dtype, batch_size

    @property
    def fingerprint(self) -> str:
        return fingerprint(
            model="timm",
            architecture=self.architecture,
            weights=weights_of(self.architecture, self.path),
            test_size=self.test_size,
            dtype=self.dtype,
            **versions("timm", "torch", "torchvision", "pillow"),
        )

    @property
    def class_count(self) -> int | None:
        """The number of classes, without the weights; None if only they tell."""
        if self.path is not None or str(self.architecture).startswith("hf-hub:"):
            return None
        return int(pretrained_config(str(self.architecture)).num_classes)

    @cached_property
    def network(self) -> Any:
        """The network with its weights, loaded when first used.

        Raises:
            ModelError: the weights cannot be read or downloaded.
        """
        import timm
        import torch

        name = str(self.architecture)
        with downloading(str(self.path or name), local=self.path is not None):
            if self.path is None:
                network = timm.create_model(name, pretrained=True)
            elif self.path.is_dir():
                network = timm.create_model(f"local-dir:{self.path}", pretrained=True)
            else:  # With `checkpoint_path` timm would not convert checkpoints in the layouts of other libraries.
                network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(self.path)})
        return network.eval().to(self.device, getattr(torch, self.dtype))

    @cached_property
    def transform(self) -> Any:
        """The preprocessing that the weights declare, from a Pillow picture to a float32 tensor (3, height, width)."""
        from timm.data import create_transform, resolve_model_data_config

        return create_transform(**resolve_model_data_config(self.network, use_test_size=self.test_size), is_training=False)

    def __call__(self, images: Sequence[Image]) -> npt.NDArray[np.float32]:
        import torch

        scores = [np.zeros((0, self.network.num_classes), np.float32)]
        for batch in chunks(images, self.batch_size):
            inputs = torch.stack([self.transform(picture(image)) for image in batch])
            with torch.inference_mode():
                logits = self.network(inputs.to(self.device, getattr(torch, self.dtype)))
            scores.append(logits.float().cpu().numpy())
        return np.concatenate(scores)


def weights_of(architecture: str | None, path: Path | None) -> Any:
    """What identifies the weights of a timm network, for a fingerprint.

    Args:
        architecture: as in `TimmClassifier`.
        path: as in `TimmClassifier`.

    Returns:
        The SHA-256 of local files, a commit of the hub, or the file name of the download.

    Raises:
        ModelError: timm does not have the network or weights for it, or neither the hub nor its cache tells the commit.
    """
    if path is not None:
        return folder_sha256(path) if path.is_dir() else file_sha256(path)
    name = str(architecture)
    if name.startswith("hf-hub:"):
        repository, _, revision = name.removeprefix("hf-hub:").partition("@")
        return commit_of(repository, revision or None)
    source = pretrained_config(name)
    if source.hf_hub_id:
        return {source.hf_hub_id: commit_of(source.hf_hub_id)}
    return str(source.url).rsplit("/")[-1]


def known_weights(architecture: str) -> Any:
    """As `weights_of` for a name, but None where neither the hub nor its cache tells the commit, so that no weights are there."""
    try:
        return weights_of(architecture, None)
    except ModelError:
        return None


def pretrained_config(name: str) -> Any:
    """What timm knows of the weights of an architecture's name.

    Raises:
        ModelError: timm does not have the network, or weights for it.
    """
    from timm.models import get_pretrained_cfg, is_model

    if not is_model(name.partition(".")[0]):
        raise ModelError(f"architecture: timm has no {name!r}; see timm.list_models()")
    config = get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise ModelError(f"architecture: timm has no weights for {name!r}; see timm.list_models(pretrained=True)")
    return config
