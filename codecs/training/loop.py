"""The training loop of all recipes, on accelerate: several GPUs, mixed precision, accumulated gradients, averaged weights,
resuming.

    batch --objective--> terms --backward--> optimiser --> moving average       every `checkpoint_every` steps: checkpoint.pt

A killed run resumes from its checkpoint and gives the same losses as an uninterrupted one: crops, noise and learning rate of a step
follow from the seed and the step's number alone, and the checkpoint, which is replaced atomically, holds everything else.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from diffusers.training_utils import EMAModel
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader

from icmbench.codecs.base import CodecError
from icmbench.codecs.training.checkpoints import CHECKPOINT, WEIGHTS, load_start_weights, read_checkpoint, replacing
from icmbench.codecs.training.data import CropDataset, collate
from icmbench.codecs.training.log import TermLog, open_log
from icmbench.codecs.training.objective import Objective
from icmbench.codecs.training.stage import StageOptions

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # Parameters of mallopt, from malloc.h.

Validate = Callable[[Path], Mapping[str, float]]  # Scores the codec whose files are in a folder.
Progress = Callable[[int], None]  # Called after each step with the number of images that the step used.


def make_accelerator(precision: str = "no") -> Accelerator:
    """Set up accelerate in this process.

    Args:
        precision: "no" for float32, "bf16" or "fp16".

    Raises:
        CodecError: this machine does not offer the precision.
    """
    AcceleratorState._reset_state()  # An earlier recipe in this process may have used another precision.
    try:
        # A network whose terms have no weight gets no gradient, which is an error without this setting.
        unused = DistributedDataParallelKwargs(find_unused_parameters=True)
        return Accelerator(mixed_precision=precision, kwargs_handlers=[unused])
    except ValueError as error:
        raise CodecError(f"precision {precision} does not work here ({error}): set precision: no") from error


def keep_freed_memory() -> None:
    """Have the C library keep freed memory in the process, because asking for it anew takes up to a third of a step on a CPU."""
    with contextlib.suppress(OSError, AttributeError):  # Only the GNU C library has mallopt.
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def train_stage(
    build: Callable[[str], Objective],
    data: CropDataset,
    stage: StageOptions,
    folder: Path,
    *,
    accelerator: Accelerator,
    seed: int = 0,
    identity: str = "{}",
    start: Path | None = None,
    export: Path | None = None,
    validate: Validate | None = None,
    progress: Progress | None = None,
) -> None:
    """Train a stage to its end, from its checkpoint if there is one.

    Args:
        build: makes the objective on a given PyTorch device.
        data: the photographs.
        stage: how long and how fast to train.
        folder: gets log.jsonl, TensorBoard logs, checkpoint.pt and, at the end, weights.safetensors in its place.
        accelerator: accelerate's state of this process.
        seed: decides the initial weights, and all noise of the training steps.
        identity: JSON object of everything that decides the weights; a folder begun with another one is refused.
        start: weights to start from: a file of an earlier stage, or a folder of exported files.
        export: folder for the codec's files; by default nothing is exported.
        validate: scores the exported codec every `stage.validate_every` steps.
        progress: called after each step.

    Raises:
        CodecError: a loss is not finite, the data do not suit the objective, or a file does not fit or is damaged.
    """
    keep_freed_memory()
    torch.manual_seed(seed)
    objective = build_objective(build, data, stage, str(accelerator.device), start)
    trainer = _StageTrainer(objective.train(), stage, folder, accelerator, json.loads(identity))
    first = trainer.resume()
    batches = _batches(data, stage, accelerator, first)
    with open_log(folder, first) if accelerator.is_main_process else contextlib.nullcontext(TermLog()) as log:
        for step in range(first, stage.steps):
            terms = trainer.step(step, [next(batches) for _ in range(stage.accumulate)], seed)
            if step % stage.log_every == 0 or step == stage.steps - 1:
                log.write(step, {**terms, "lr": trainer.lr})
            if progress is not None:
                progress(stage.batch * stage.accumulate * accelerator.num_processes)
            done = step + 1
            if validate is not None and stage.validate_every and done % stage.validate_every == 0:
                log.write(step, {f"validation/{name}": value for name, value in trainer.validate(validate).items()})
            if stage.checkpoint_every and done % stage.checkpoint_every == 0 and done < stage.steps:
                trainer.save(done)
    trainer.finish(export)


def build_objective(
    build: Callable[[str], Objective], data: CropDataset, stage: StageOptions, device: str, start: Path | None = None
) -> Objective:
    """Build a stage's objective with all the networks that its losses need.

    Args:
        build: makes the objective on a given PyTorch device.
        data: the photographs.
        stage: the stage's options.
        device: PyTorch device.
        start: weights to start from, as for `train_stage`.

    Raises:
        CodecError: the objective cannot be built, or the data, the stage or the weights do not suit it.
    """
    objective = build(device)
    if data.crop % objective.pad:
        raise CodecError(f"data.crop: this objective takes multiples of {objective.pad} pixels, not {data.crop}")
    if missing := objective.needs - data.provides:
        remedy = {"text": "captions or tags", "mask": "masks", "label": "labels"}
        raise CodecError(f"this objective needs {', '.join(remedy[need] for need in sorted(missing))}: set them in data")
    if stage.only is not None:
        _freeze_others(objective, stage.only)
    if start is not None:
        load_start_weights(objective, start)
    nn.utils.convert_conv2d_weight_memory_format(objective, torch.channels_last)
    return objective


class _StageTrainer:
    """The objective, the optimiser and the averaged weights of one stage."""

    def __init__(
        self, objective: Objective, stage: StageOptions, folder: Path, accelerator: Accelerator, identity: dict[str, Any]
    ) -> None:
        self.objective, self.stage, self.folder, self.identity = objective, stage, folder, identity
        self.accelerator = accelerator
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

    def step(self, step: int, batches: list[dict[str, Any]], seed: int) -> dict[str, float]:
        """Take one step of the optimiser and return its terms, averaged over the batches of all processes."""
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
        averaged: Any = accelerator.reduce(torch.tensor(list(means.values()), device=accelerator.device), "mean")
        means = dict(zip(means, averaged.tolist()))
        if bad := [name for name, value in means.items() if not math.isfinite(value)]:
            raise CodecError(f"{', '.join(bad)} is no finite number at step {step}: lower lr, and begin {self.folder} anew")
        accelerator.unscale_gradients()
        for group in self.optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], self.stage.clip or math.inf)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.step(self.parameters)
        return means

    def save(self, done: int) -> None:
        """Write checkpoint.pt after `done` steps; a crash meanwhile leaves the earlier checkpoint intact."""
        if self.accelerator.is_main_process:
            state = {
                "step": done,
                "recipe": json.dumps(self.identity),
                "objective": self.objective.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "ema": self.ema and self.ema.state_dict(),
                "scaler": self.accelerator.scaler and self.accelerator.scaler.state_dict(),
            }
            with replacing(self.folder / CHECKPOINT) as temporary:
                torch.save(state, temporary)
        self.accelerator.wait_for_everyone()

    def resume(self) -> int:
        """Restore the checkpoint, if there is one, and return the number of the next step."""
        state = read_checkpoint(self.folder, self.identity)
        if state is None:
            return 0
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
            self.ema.to(self.accelerator.device)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        return state["step"]

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

    def validate(self, validate: Validate) -> Mapping[str, float]:
        """Export the averaged weights and return their scores; empty in all processes but the main one."""
        scores: Mapping[str, float] = {}
        if self.accelerator.is_main_process:
            with self.averaged():
                folder = self.folder / "validation"
                folder.mkdir(parents=True, exist_ok=True)
                self.objective.export(folder)
                scores = validate(folder)
        self.accelerator.wait_for_everyone()
        return scores

    def finish(self, export: Path | None) -> None:
        """Write the codec's files, then weights.safetensors, whose presence marks the stage as finished."""
        if self.accelerator.is_main_process:
            with self.averaged():
                if export is not None:
                    export.mkdir(parents=True, exist_ok=True)
                    self.objective.export(export)
                state = {key: value.detach().cpu().contiguous() for key, value in self.objective.state_dict().items()}
            with replacing(self.folder / WEIGHTS) as temporary:
                save_file(state, temporary, {"recipe": json.dumps(self.identity)})
            (self.folder / CHECKPOINT).unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.free_memory()


def _batches(data: CropDataset, stage: StageOptions, accelerator: Accelerator, step: int) -> Iterator[dict[str, Any]]:
    """This process's batches from a step on."""
    positions = _batch_positions(stage, accelerator, step)
    return iter(DataLoader(data, batch_sampler=positions, collate_fn=collate, num_workers=stage.workers))


def _batch_positions(stage: StageOptions, accelerator: Accelerator, step: int) -> Iterator[list[int]]:
    """Yield the positions of this process's batches in the data's order, from a step on; at each step the processes take adjacent
    batches."""
    world, rank = accelerator.num_processes, accelerator.process_index
    for number in range(step * stage.accumulate, stage.steps * stage.accumulate):
        first = (number * world + rank) * stage.batch
        yield list(range(first, first + stage.batch))


def _mix_seeds(*numbers: int) -> int:
    """Make one seed from several numbers."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number + 1) % (1 << 63)
    return mixed


def _freeze_others(objective: Objective, only: list[str]) -> None:
    """Freeze every part not in `only`. Raises CodecError if a name matches no part."""
    parts = {name.partition(".")[0] for name, _ in objective.named_parameters()}
    if unknown := set(only) - parts:
        raise CodecError(f"only: there is no {', '.join(sorted(unknown))}; the parts are {', '.join(sorted(parts))}")
    for name, parameter in objective.named_parameters():
        if name.partition(".")[0] not in only:
            parameter.requires_grad_(False)
