"""The base class of the adapters for transformers: a checkpoint with its configuration, preprocessing and network."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from icmbench.tasks.base import Image
from icmbench.tasks.models.batches import picture
from icmbench.tasks.models.devices import Device, Dtype
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.hub import Checkpoint, require, versions


class Pretrained:
    """Base of the adapters for transformers: one checkpoint.

    Args:
        checkpoint: hub name such as `org/model`; leave out if `path` is given.
        path: folder as `save_pretrained` writes it; leave out if `checkpoint` is given.
        revision: branch, tag or commit of the hub repository; the main branch by default.
        device: where the network runs.
        dtype: type of weights and activations, to which the checkpoint is converted; part of the fingerprint.
        batch_size: largest number of images in a forward pass. It changes results by rounding only.

    Attributes:
        auto: names of the auto classes of transformers that can build the network; the first one that knows the checkpoint's
            configuration is used.

    Raises:
        ModelError: both or neither of `checkpoint` and `path` are given, or the folder holds no config.json.
        ModuleNotFoundError: torch, torchvision or transformers is not installed.
    """

    extra: ClassVar[str] = "transformers"
    weights: ClassVar[str] = "any fitting checkpoint of the hub, downloaded by name, or `path` to its folder; see its model card"
    auto: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        checkpoint: str | None = None,
        path: Path | None = None,
        revision: str | None = None,
        device: Device = "cpu",
        dtype: Dtype = "float32",
        batch_size: int = 8,
    ) -> None:
        require("torch", "torchvision", "transformers")
        self.checkpoint = Checkpoint(checkpoint, path, revision)
        self.device, self.dtype, self.batch_size = device, dtype, batch_size

    @cached_property
    def config(self) -> Any:
        """The checkpoint's configuration, a `PretrainedConfig` of transformers."""
        from transformers import AutoConfig

        return self.checkpoint.load(AutoConfig)

    @cached_property
    def processor(self) -> Any:
        """The checkpoint's preprocessing, an image processor of transformers."""
        from transformers import AutoImageProcessor

        return self.checkpoint.load(AutoImageProcessor)

    @property
    def categories(self) -> list[str]:
        """Names by class index, from the checkpoint's configuration."""
        return [self.config.id2label[index] for index in range(self.config.num_labels)]

    @cached_property
    def network(self) -> Any:
        """The network with its weights, loaded when first used.

        Raises:
            ModelError: the checkpoint cannot be loaded, is for another task, or lacks weights (transformers only warns of that).
        """
        import torch
        import transformers

        auto_classes = [getattr(transformers, name) for name in self.auto]
        fitting = [auto for auto in auto_classes if type(self.config) in auto._model_mapping]
        if not fitting:
            raise ModelError(f"{self.checkpoint.source}: a {self.config.model_type!r} checkpoint is none for {type(self).__name__}")
        network, report = self.checkpoint.load(fitting[0], dtype=getattr(torch, self.dtype), output_loading_info=True)
        absent = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
        if absent:
            raise ModelError(
                f"{self.checkpoint.source}: {len(absent)} weights of {type(network).__name__} are not in this checkpoint, such as "
                f"{absent[0]}; take one that was trained for this task"
            )
        return network.eval().to(self.device)

    def inputs(self, images: Sequence[Image]) -> Any:
        """Preprocess images.

        Args:
            images: uint8 (height, width, 3) each, all of one shape, so that the processor pads none of them.

        Returns:
            The processor's output on the network's device, with floating-point tensors in the network's type.
        """
        import torch

        batch = self.processor(images=[picture(image) for image in images], return_tensors="pt")
        return batch.to(self.device, getattr(torch, self.dtype))

    def facts(self) -> dict[str, Any]:
        """Entries that all adapters share in their fingerprints: checkpoint, type and library versions."""
        return {**self.checkpoint.facts, "dtype": self.dtype, **versions("torch", "torchvision", "transformers")}
