"""The training loop of all recipes, on accelerate: several GPUs, mixed precision, accumulated gradients, averaged weights,
resuming.

    batch --objective--> terms --backward--> optimiser --> moving average      now and then, and when asked to stop: a checkpoint

A run that was stopped or killed resumes from its last checkpoint and gives the same losses and weights as an uninterrupted one, on
a CPU bit for bit: crops, noise and learning rate of a step follow from the seed and the step's number, and all else is in the
checkpoint. On a GPU two uninterrupted runs differ by rounding already. With another number of processes a step has the same
crops, but other noise.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn
from torch.utils.data import DataLoader

from icmbench.codecs.base import CodecError
from icmbench.codecs.training.checkpoints import Checkpoint, load_start_weights
from icmbench.codecs.training.data import CropDataset, collate
from icmbench.codecs.training.log import VALIDATION, TermLog, logged_steps, open_log
from icmbench.codecs.training.objective import Objective
from icmbench.codecs.training.observer import Observer
from icmbench.codecs.training.stage import StageOptions
from icmbench.codecs.training.stage_files import StageFiles, Validate
from icmbench.codecs.training.stopping import StopRequest, TrainingStopped, ignore_stop_signals
from icmbench.codecs.training.trainer import DivergedError, StageTrainer, agree

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # Parameters of mallopt, from malloc.h.


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
    observer: Observer | None = None,
) -> None:
    """Train a stage to its end, from its last good checkpoint if there is one.

    Args:
        build: makes the objective on a given PyTorch device.
        data: the photographs.
        stage: how long and how fast to train.
        folder: gets log.jsonl, TensorBoard logs, checkpoints and, at the end, weights.safetensors in their place.
        accelerator: accelerate's state of this process.
        seed: decides the initial weights, and all noise of the training steps.
        identity: JSON object of everything that decides the weights; a folder begun with another one is refused.
        start: weights to start from: a file of an earlier stage, or a folder of exported files.
        export: folder for the codec's files; by default nothing is exported.
        validate: scores the exported codec every `stage.validate_every` steps.
        observer: hears of each step, in the main process.

    Raises:
        CodecError: a loss is not finite, the data do not suit the objective, a file is damaged or does not fit, or a disk is full.
        TrainingStopped: SIGTERM or Ctrl-C arrived. All steps that were taken are in a checkpoint, unless a second Ctrl-C came.
    """
    keep_freed_memory()
    stage.images_at_once(accelerator.num_processes)
    torch.manual_seed(seed)
    objective = build_objective(build, data, stage, str(accelerator.device), start)
    with StopRequest(announce=accelerator.is_main_process) as stop:
        files = StageFiles(StageTrainer(objective.train(), stage, accelerator), folder, json.loads(identity), stop)
        _StepLoop(files, observer, validate).run(data, seed)
        files.finish(export)
        if agree(accelerator, stop.requested):
            raise TrainingStopped(f"{folder.name}: stopped after it was trained to its end; the same command goes on from there")


class _StepLoop:
    """The steps of a stage in their order, with what is written and said in between."""

    def __init__(self, files: StageFiles, observer: Observer | None, validate: Validate | None) -> None:
        self._files, self._validate = files, validate
        self._observer = observer if observer is not None and files.accelerator.is_main_process else Observer()
        self._trainer, self._stage, self._accelerator = files.trainer, files.stage, files.accelerator
        self._name = files.folder.name

    def run(self, data: CropDataset, seed: int) -> None:
        """Take the steps that are left. Raises TrainingStopped if the user asked for it, and CodecError as `train_stage` does."""
        done, owes_validation = self._resume(), self._files.owes_validation
        is_main = self._accelerator.is_main_process
        logging = open_log(self._files.folder, done, owes_validation) if is_main else contextlib.nullcontext(TermLog())
        try:
            with logging as log:
                if owes_validation and self._validate is not None:
                    self._score(self._validate, done, log)
                self._observer.begin(done)
                with _loading(data, self._stage, self._accelerator, done) as batches:
                    while done < self._stage.steps:
                        batches_of_step = [next(batches) for _ in range(self._stage.accumulate)]
                        stops, minutes_are_over = self._take_step(done, batches_of_step, seed, log)
                        done += 1
                        self._conclude_step(done, stops, minutes_are_over, log)
        except TrainingStopped:
            raise
        except KeyboardInterrupt:
            raise TrainingStopped(
                f"{self._name}: stopped at once, with {done} steps done; {self._files.kept}, and the same command goes on"
            ) from None

    def _resume(self) -> int:
        """Go back to the last good checkpoint, say so, and return the number of the next step."""
        found = self._files.resume()
        if self._accelerator.is_main_process:
            logged = logged_steps(self._files.folder)
            if found.step or logged:
                why = _describe_checkpoint(found, logged, self._accelerator.num_processes)
                self._observer.tell(f"{self._name}: resumes from step {found.step} of {self._stage.steps}: {why}")
        return found.step

    def _take_step(self, step: int, batches: list[dict[str, Any]], seed: int, log: TermLog) -> tuple[bool, bool]:
        """Take a step; returns whether all processes stop after it, and whether they write a checkpoint because of the time."""
        try:
            terms, (stops, minutes_are_over) = self._trainer.step(step, batches, seed, self._files.wishes)
        except DivergedError as error:
            raise CodecError(
                f"{self._name}: {error} at step {step + 1} of {self._stage.steps}, and training stopped; {self._files.kept} in "
                f"{self._files.folder}: lower lr, and name another run folder with --out"
            ) from error
        if step % self._stage.log_every == 0 or step == self._stage.steps - 1:
            log.write(step, {**terms, "lr": self._trainer.lr})
        weights = self._trainer.objective.weights
        self._observer.step(step + 1, terms, sum(weight * terms[name] for name, weight in weights.items() if weight))
        # A single process need not ask others, so that a request after the exchange is not left to the next step.
        return stops or (self._accelerator.num_processes == 1 and self._files.stop.requested), minutes_are_over

    def _conclude_step(self, done: int, stops: bool, minutes_are_over: bool, log: TermLog) -> None:
        """Write a checkpoint if one is due, validate if that is due, and stop if any process was asked to."""
        files, stage = self._files, self._stage
        is_last = done == stage.steps
        validate = self._validate if stage.validate_every and done % stage.validate_every == 0 else None
        files.owes_validation = validate is not None
        is_due = stops or minutes_are_over or bool(stage.checkpoint_every and done % stage.checkpoint_every == 0)
        if validate is not None:
            is_due = is_due or bool(stage.checkpoint_every or stage.checkpoint_minutes)
        if is_due and (validate is not None or not is_last):  # What follows the last step is written in its place.
            files.save(done)
        if stops and (validate is not None or not is_last):
            raise self._stopped(done)
        if validate is not None:
            self._score(validate, done, log)

    def _score(self, validate: Validate, done: int, log: TermLog) -> None:
        """Validate after `done` steps."""
        scores = self._files.validate(validate)
        if scores is None:
            if self._files.saved != done:
                self._files.save(done)
            raise self._stopped(done)
        if scores:
            log.write(done - 1, {f"{VALIDATION}{name}": value for name, value in scores.items()})
            text = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
            self._observer.tell(f"{self._name}: validation after step {done} of {self._stage.steps}: {text}")

    def _stopped(self, done: int) -> TrainingStopped:
        return TrainingStopped(
            f"{self._name}: stopped after step {done} of {self._stage.steps}, whose checkpoint is written; the same command goes "
            "on from there"
        )


def _describe_checkpoint(found: Checkpoint, logged: int, processes: int) -> str:
    """Why a run resumes where it does.

    Args:
        found: what it resumes from.
        logged: number of steps after which its log ends.
        processes: number of processes now.
    """
    reasons = [f"the checkpoint of step {step} is damaged ({problem})" for step, problem in found.damaged.items()]
    if not reasons:
        reasons.append("that is its last checkpoint" if found.step else "no checkpoint had been written yet")
    if logged > found.step:
        reasons.append(f"steps up to {logged} had been logged and are taken again")
    if found.step and found.state["processes"] != processes:
        before = found.state["processes"]
        reasons.append(f"it had {before} processes and has {processes} now, so each step has the same images but other noise")
    return "; ".join(reasons)


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


@contextlib.contextmanager
def _loading(data: CropDataset, stage: StageOptions, accelerator: Accelerator, step: int) -> Iterator[Iterator[dict[str, Any]]]:
    """Load this process's batches from a step on, while the context lasts."""
    positions = batch_positions(stage, accelerator.num_processes, accelerator.process_index, step)
    ignore = ignore_stop_signals if stage.workers else None
    loader = DataLoader(data, batch_sampler=positions, collate_fn=collate, num_workers=stage.workers, worker_init_fn=ignore)
    batches: Any = iter(loader)
    try:
        yield batches
    except CodecError as error:
        if "DataLoader worker" in str(error):  # PyTorch puts the traceback of that process in front of the sentence.
            raise CodecError(str(error).rpartition("CodecError: ")[2].strip()) from error
        raise
    finally:
        # At its end Python waits for processes that it has sent SIGTERM. These ignore it, and are ended in the loader's own way.
        if stage.workers:
            batches._shutdown_workers()


def batch_positions(stage: StageOptions, processes: int, process: int, step: int) -> Iterator[list[int]]:
    """Yield the positions of one process's batches in the data's order.

    Whatever the number of processes, step s takes the positions from `s * stage.batch` to below `(s + 1) * stage.batch`.

    Args:
        stage: the stage's options.
        processes: number of processes; at each step they take adjacent batches.
        process: number of the process, from 0.
        step: number of the first step.
    """
    size = stage.images_at_once(processes)
    for number in range(step * stage.accumulate, stage.steps * stage.accumulate):
        first = (number * processes + process) * size
        yield list(range(first, first + size))


def _freeze_others(objective: Objective, only: list[str]) -> None:
    """Freeze every part not in `only`. Raises CodecError if a name matches no part."""
    parts = {name.partition(".")[0] for name, _ in objective.named_parameters()}
    if unknown := set(only) - parts:
        raise CodecError(f"only: there is no {', '.join(sorted(unknown))}; the parts are {', '.join(sorted(parts))}")
    for name, parameter in objective.named_parameters():
        if name.partition(".")[0] not in only:
            parameter.requires_grad_(False)
