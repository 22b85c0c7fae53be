"""What the adapters of transformers share: a checkpoint, its configuration, its preprocessing and its network."""

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
    """One of `checkpoint` (a hub name, at `revision`) and `path` (a folder as `save_pretrained` writes it).

    dtype: of weights and activations, whatever the checkpoint was stored in. Subclasses name the `auto` classes of
    transformers that build their network; the first that knows the configuration is taken.
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
        from transformers import AutoConfig

        return self.checkpoint.load(AutoConfig)

    @cached_property
    def processor(self) -> Any:
        from transformers import AutoImageProcessor

        return self.checkpoint.load(AutoImageProcessor)

    @property
    def categories(self) -> list[str]:
        """Names by class index, from the checkpoint's configuration."""
        return [self.config.id2label[index] for index in range(self.config.num_labels)]

    @cached_property
    def network(self) -> Any:
        """Built and loaded at the first call. Raises ModelError where a weight is missing, which transformers only warns of."""
        import torch
        import transformers

        known = [getattr(transformers, name) for name in self.auto]
        fitting = [auto for auto in known if type(self.config) in auto._model_mapping]
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
        """The processor's tensors for images of one shape, which it therefore does not pad."""
        import torch

        batch = self.processor(images=[picture(image) for image in images], return_tensors="pt")
        return batch.to(self.device, getattr(torch, self.dtype))

    def facts(self) -> dict[str, Any]:
        return {**self.checkpoint.facts, "dtype": self.dtype, **versions("torch", "torchvision", "transformers")}
