"""How long and how fast one stage of a recipe trains."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from icmbench.codecs.base import CodecError


@dataclass(frozen=True)
class StageOptions:
    """Steps, batches and learning rates of a stage; the fields are the keys of an entry of a recipe's `stages`.

    Attributes:
        steps: steps of the optimiser.
        batch: images of a step, over all processes.
        accumulate: parts that each process divides its images of a step into, so that they need less memory; the gradients of the
            parts are averaged.
        lr: learning rate of the main parameter group.
        warmup: number of steps over which the learning rate rises linearly to its full value.
        schedule: "constant", or "cosine", which falls to zero at the end of the stage.
        lr_steps: {step: learning rate from this step on}, in place of `schedule`; until the first of these steps the rate is `lr`.
        weight_decay: weight decay of AdamW.
        clip: upper limit of the gradient norm of each parameter group; 0 for no limit.
        ema: decay of the moving average of the weights. The average is what is validated and exported; 0 takes the weights
            themselves.
        only: parts of the objective to train, by name; the others keep their weights. By default all are trained.
        log_every: steps between two logged steps; the last step is always logged.
        checkpoint_every: steps between two checkpoints; 0 for none.
        checkpoint_minutes: minutes after which a checkpoint is written even if `checkpoint_every` asks for none yet; 0 for none.
        validate_every: steps between two validations; 0 for none. A checkpoint precedes each, because validations may take long.
        workers: number of processes that read photographs; 0 reads them in the training process.

    Raises:
        CodecError: a value is out of range.
    """

    steps: int
    batch: int = 8
    accumulate: int = 1
    lr: float = 1e-4
    warmup: int = 0
    schedule: Literal["constant", "cosine"] = "constant"
    lr_steps: dict[int, float] = field(default_factory=dict)
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.0
    only: list[str] | None = None
    log_every: int = 1
    checkpoint_every: int = 500
    checkpoint_minutes: float = 10.0
    validate_every: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.accumulate, self.log_every) < 1 or self.lr <= 0 or not 0 <= self.ema < 1:
            raise CodecError("a stage has steps, batch, accumulate and log_every from 1, lr above 0, ema from 0 to below 1")
        if not 0 <= self.checkpoint_minutes < math.inf:
            raise CodecError("checkpoint_minutes: a number of minutes from 0; 0 for no checkpoints by time")

    def images_at_once(self, processes: int) -> int:
        """Images of one batch in one process.

        Args:
            processes: number of processes that share a step.

        Raises:
            CodecError: the images of a step cannot be shared equally, which would give some of them more weight.

        Example:
            >>> StageOptions(steps=1, batch=16, accumulate=2).images_at_once(4)
            2
        """
        shares = processes * self.accumulate
        if self.batch % shares:
            parts = f" in {self.accumulate} parts each (accumulate)" if self.accumulate > 1 else ""
            near = sorted({max(1, self.batch // shares) * shares, -(-self.batch // shares) * shares})
            raise CodecError(
                f"batch: {processes} processes cannot share the {self.batch} images of a step equally{parts}: take "
                f"{' or '.join(map(str, near))} images, or another number of processes"
            )
        return self.batch // shares

    def lr_factor(self, step: int) -> float:
        """The factor of every parameter group's learning rate at a step, counted from 0."""
        warmup = min(1.0, (step + 1) / (self.warmup + 1))
        if self.lr_steps:
            rate = next((lr for start, lr in sorted(self.lr_steps.items(), reverse=True) if step >= start), self.lr)
            return warmup * rate / self.lr
        return warmup * (0.5 + 0.5 * math.cos(math.pi * step / self.steps) if self.schedule == "cosine" else 1.0)
