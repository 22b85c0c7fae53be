"""The steps of one stage: the objective, the optimiser and the averaged weights, on all processes of accelerate."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from icmbench.codecs.base import CodecError
from icmbench.codecs.training.objective import Objective
from icmbench.codecs.training.stage import StageOptions


class DivergedError(CodecError):
    """A loss or a gradient is not finite. The message is a part of a sentence; the weights are as before the step."""


class StageTrainer:
    """Takes the steps of one stage, and holds all that they change.

    Args:
        objective: what is trained.
        stage: how long and how fast.
        accelerator: accelerate's state of this process.
    """

    def __init__(self, objective: Objective, stage: StageOptions, accelerator: Accelerator) -> None:
        self.objective, self.stage, self.accelerator = objective, stage, accelerator
        groups = objective.parameter_groups(stage.lr)
        self.full_rates = [group["lr"] for group in groups]
        optimizer = torch.optim.AdamW(groups, lr=stage.lr, weight_decay=stage.weight_decay)
        self.model, self.optimizer = accelerator.prepare(objective, optimizer)
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.ema = EMAModel(self.parameters, decay=stage.ema) if stage.ema else None

    @property
    def lr(self) -> float:
        """The current learning rate of the main parameter group."""
        return self.optimizer.param_groups[0]["lr"]

    def step(
        self, step: int, batches: list[dict[str, Any]], seed: int, wishes: Callable[[], Sequence[bool]]
    ) -> tuple[dict[str, float], list[bool]]:
        """Take one step of the optimiser.

        Args:
            step: its number, from 0.
            batches: this process's batches, whose gradients are averaged.
            seed: decides all noise, together with the step's number.
            wishes: what this process wants all of them to do after the step. They are exchanged together with the loss terms,
                because an exchange of their own would make every step slower.

        Returns:
            The loss terms, averaged over the batches of all processes; and for each wish, whether any process has it.

        Raises:
            DivergedError: a loss term or a gradient is not finite.
        """
        accelerator, means = self.accelerator, dict[str, float]()
        for group, rate in zip(self.optimizer.param_groups, self.full_rates):
            group["lr"] = rate * self.stage.lr_factor(step)
        self.optimizer.zero_grad(set_to_none=True)
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            torch.manual_seed(_mix_seeds(seed, step, number, accelerator.process_index))
            with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                terms = self.model(batch)
                loss = sum(weight * terms[name] for name, weight in self.objective.weights.items() if weight)
                accelerator.backward(loss / len(batches))
            for name, value in terms.items():
                means[name] = means.get(name, 0.0) + float(value.detach()) / len(batches)
        values = torch.tensor([*means.values(), *map(float, wishes())], device=accelerator.device)
        averaged: Any = accelerator.reduce(values, "mean")
        shares = averaged.tolist()[len(means) :]  # Of the processes that have each wish.
        means = dict(zip(means, averaged.tolist()))
        self._update_weights(means)
        return means, [share > 0 for share in shares]

    def _update_weights(self, terms: dict[str, float]) -> None:
        """Move the weights along the gradients, unless these or the loss are not finite."""
        if bad := [name for name, value in terms.items() if not math.isfinite(value)]:
            raise DivergedError(f"the loss term {bad[0]} is no finite number ({terms[bad[0]]})")
        self.accelerator.unscale_gradients()
        norms = [nn.utils.clip_grad_norm_(group["params"], self.stage.clip or math.inf) for group in self.optimizer.param_groups]
        # With fp16, accelerate's scaler leaves out steps whose gradients are too large for the format, which is no error.
        if self.accelerator.scaler is None and not all(bool(norm.isfinite()) for norm in norms):
            raise DivergedError("the loss is finite, but its gradient is not,")
        self.optimizer.step()
        if self.ema is not None:
            self.ema.step(self.parameters)

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold, so that the next step is the same. Noise and data follow from the step's number alone."""
        return {
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema and self.ema.state_dict(),
            "scaler": self.accelerator.scaler and self.accelerator.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state that `state` returned."""
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
            self.ema.to(self.accelerator.device)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def non_finite_weights(self) -> str:
        """Names the first weight that is not finite, as a part of a sentence; empty if all are finite."""
        averages: Iterable[Tensor] = self.ema.shadow_params if self.ema is not None else ()
        for name, parameter in self.objective.named_parameters():
            if not bool(parameter.isfinite().all()):
                return f"the weight {name} is not finite"
        return "" if all(bool(average.isfinite().all()) for average in averages) else "the averaged weights are not finite"

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the objective its averaged weights and evaluation mode; afterwards all is as before, the random state too."""
        self.objective.eval()
        if self.ema is not None:
            self.ema.store(self.parameters)
            self.ema.copy_to(self.parameters)
        try:
            with torch.random.fork_rng():
                yield
        finally:
            if self.ema is not None:
                self.ema.restore(self.parameters)
            self.objective.train()


def agree(accelerator: Accelerator, flag: bool) -> bool:
    """Whether a flag is set in any process. All processes have to call this."""
    values: Any = accelerator.reduce(torch.tensor([float(flag)], device=accelerator.device), "sum")
    return bool(values.item())


def _mix_seeds(*numbers: int) -> int:
    """Make one seed from several numbers."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number + 1) % (1 << 63)
    return mixed
