"""The loop of all recipes, on accelerate: several GPUs, mixed precision, gradient accumulation, averaged weights, resume.

    batch --objective--> terms --backward--> optimiser --> EMA          every `checkpoint_every` steps: checkpoint.pt, atomically

A run that is killed goes on from its checkpoint to the same trace of losses: crops, noise and learning rate of a step follow from
the seed and the step's number alone, everything else is in the checkpoint.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from diffusers.training_utils import EMAModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from icmbench.codecs.base import CodecError
from icmbench.codecs.diffusion.backbone.weights import TABLES, read_state
from icmbench.codecs.training.data import Crops, collate
from icmbench.codecs.training.objective import Objective

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
CHECKPOINT, WEIGHTS, LOG = "checkpoint.pt", "weights.safetensors", "log.jsonl"

Validate = Callable[[Path], Mapping[str, float]]  # scores of the codec whose files are in a folder
Progress = Callable[[int], None]  # told after each step how many images it saw


@dataclass(frozen=True)
class Stage:
    """How long and how fast to train.

    steps: of the optimiser. batch: images of one process at a time. accumulate: such batches to a step. lr: of the main group.
    warmup: steps of a linear start. schedule: "cosine" falls to zero at the last step. lr_steps: {step: lr from there on}, instead.
    weight_decay: of AdamW. clip: largest norm of each group's gradient. ema: decay of the averaged weights, which are what is
    exported; 0 for none. only: parts to train; the others stay as the stage before left them. log_every, checkpoint_every,
    validate_every: steps; 0 for never. workers: processes that read photographs.
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
    validate_every: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.accumulate, self.log_every) < 1 or self.lr <= 0 or not 0 <= self.ema < 1:
            raise CodecError("a stage has steps, batch, accumulate and log_every from 1, lr above 0, ema from 0 to below 1")

    def factor(self, step: int) -> float:
        """What the groups' learning rates are multiplied with at a step."""
        start = min(1.0, (step + 1) / (self.warmup + 1))
        if self.lr_steps:
            return start * next((lr for at, lr in sorted(self.lr_steps.items(), reverse=True) if step >= at), self.lr) / self.lr
        return start * (0.5 + 0.5 * math.cos(math.pi * step / self.steps) if self.schedule == "cosine" else 1.0)


def accelerator(precision: str = "no") -> Accelerator:
    """Of this process. precision: "no", "bf16" or "fp16"."""
    AcceleratorState._reset_state()  # a recipe before this one may have had another precision
    try:
        # Networks whose terms have no weight get no gradient.
        spare = DistributedDataParallelKwargs(find_unused_parameters=True)
        return Accelerator(mixed_precision=precision, kwargs_handlers=[spare])
    except ValueError as error:
        raise CodecError(f"precision {precision} does not work here ({error}): set precision: no") from error


def keep_memory() -> None:
    """Freed tensors stay with the process: giving them back and taking them anew is up to a third of a step on a CPU."""
    with contextlib.suppress(OSError, AttributeError):  # where the C library is not GNU's
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def finished(folder: Path, identity: str) -> bool:
    """Whether a stage is done. CodecError where the folder holds the weights of another recipe."""
    path = folder / WEIGHTS
    if not path.is_file():
        return False
    with safe_open(path, "pt") as file:
        _same(json.loads(identity), json.loads((file.metadata() or {}).get("recipe", "{}")), folder)
    return True


def train(
    build: Callable[[str], Objective],
    data: Crops,
    stage: Stage,
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
    """Train to the stage's end, from its checkpoint if there is one.

    build: makes the objective on a device. folder: gets checkpoint.pt, log.jsonl (a line of terms a logged step), TensorBoard logs,
    and at the end weights.safetensors. identity: JSON of all that decides the result; a folder begun with another is refused.
    start: weights to begin with, of an earlier stage, or a folder of exported ones. export: where the codec's files go. CodecError
    where a loss is not finite, or a file does not fit or is damaged.
    """
    keep_memory()
    torch.manual_seed(seed)
    objective = built(build, data, stage, str(accelerator.device))
    if start is not None:
        _begin_with(objective, start)
    nn.utils.convert_conv2d_weight_memory_format(objective, torch.channels_last)
    run = _Run(objective.train(), stage, folder, accelerator, json.loads(identity))
    first = run.resume()
    positions = _positions(stage, accelerator, first)
    batches = iter(DataLoader(data, batch_sampler=positions, collate_fn=collate, num_workers=stage.workers))
    with run.logs(first):
        for step in range(first, stage.steps):
            terms = run.step(step, [next(batches) for _ in range(stage.accumulate)], seed)
            if step % stage.log_every == 0 or step == stage.steps - 1:
                run.log(step, terms)
            if progress is not None:
                progress(stage.batch * stage.accumulate * accelerator.num_processes)
            done = step + 1
            if validate is not None and stage.validate_every and done % stage.validate_every == 0:
                run.validate(step, validate)
            if stage.checkpoint_every and done % stage.checkpoint_every == 0 and done < stage.steps:
                run.save(done)
    run.finish(export)


def built(build: Callable[[str], Objective], data: Crops, stage: Stage, device: str) -> Objective:
    """A stage's objective, with all that its losses look through. CodecError where that, the data or the stage do not suit."""
    objective = build(device)
    if data.crop % objective.pad:
        raise CodecError(f"data.crop: this objective takes multiples of {objective.pad} pixels, not {data.crop}")
    if missing := objective.needs - data.brings:
        remedy = {"text": "captions or tags", "mask": "masks", "label": "labels"}
        raise CodecError(f"this objective needs {', '.join(remedy[need] for need in sorted(missing))}: set them in data")
    if stage.only is not None:
        _freeze_others(objective, stage.only)
    return objective


class _Run:
    """The state of one stage."""

    def __init__(self, objective: Objective, stage: Stage, folder: Path, accelerator: Accelerator, identity: Any) -> None:
        self.objective, self.stage, self.folder, self.identity = objective, stage, folder, identity
        self.accelerator = accelerator
        groups = objective.groups(stage.lr)
        self.rates = [group["lr"] for group in groups]
        optimizer = torch.optim.AdamW(groups, lr=stage.lr, weight_decay=stage.weight_decay)
        self.model, self.optimizer = accelerator.prepare(objective, optimizer)
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.ema = EMAModel(self.parameters, decay=stage.ema) if stage.ema else None
        self._log: Any = None

    def step(self, step: int, batches: list[dict[str, Any]], seed: int) -> dict[str, float]:
        """One step of the optimiser; its terms, averaged over the batches of all processes."""
        accelerator, sums = self.accelerator, dict[str, float]()
        for group, rate in zip(self.optimizer.param_groups, self.rates):
            group["lr"] = rate * self.stage.factor(step)
        self.optimizer.zero_grad(set_to_none=True)
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            torch.manual_seed(_mix(seed, step, number, accelerator.process_index))
            with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                terms = self.model(batch)
                loss = sum(weight * terms[name] for name, weight in self.objective.weights.items() if weight)
                accelerator.backward(loss / len(batches))
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach()) / len(batches)
        averaged: Any = accelerator.reduce(torch.tensor(list(sums.values()), device=accelerator.device), "mean")
        sums = dict(zip(sums, averaged.tolist()))
        if bad := [name for name, value in sums.items() if not math.isfinite(value)]:
            raise CodecError(f"{', '.join(bad)} is no finite number at step {step}: lower lr, and begin {self.folder} anew")
        accelerator.unscale_gradients()
        for group in self.optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], self.stage.clip or math.inf)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.step(self.parameters)
        return sums

    def save(self, done: int) -> None:
        """checkpoint.pt: whole or as it was before."""
        if self.accelerator.is_main_process:
            state = {
                "step": done,
                "recipe": json.dumps(self.identity),
                "objective": self.objective.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "ema": self.ema and self.ema.state_dict(),
                "scaler": self.accelerator.scaler and self.accelerator.scaler.state_dict(),
            }
            with _replacing(self.folder / CHECKPOINT) as temporary:
                torch.save(state, temporary)
        self.accelerator.wait_for_everyone()

    def resume(self) -> int:
        """Back to the checkpoint, if there is one; the step to go on with."""
        path = self.folder / CHECKPOINT
        if not path.is_file():
            return 0
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # damaged pickles raise whatever they lead to
            raise CodecError(f"{path} is damaged: delete it, and the stage begins anew") from error
        _same(self.identity, json.loads(state["recipe"]), self.folder)
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
            self.ema.to(self.accelerator.device)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        return state["step"]

    @contextlib.contextmanager
    def logs(self, step: int) -> Iterator[None]:
        """Opens the logs; what an interrupted run logged from `step` on goes, for it comes again."""
        if not self.accelerator.is_main_process:
            yield
            return
        path = self.folder / LOG
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        whole = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < step]
        with _replacing(path) as temporary:
            temporary.write_text("".join(whole))
        board = None
        if find_spec("tensorboardX"):
            from tensorboardX import SummaryWriter

            board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step)
        with path.open("a") as file:
            self._log = (file, board)
            try:
                yield
            finally:
                self._log = None
                if board is not None:
                    board.close()

    def log(self, step: int, terms: Mapping[str, float], prefix: str = "") -> None:
        if self._log is None:
            return
        file, board = self._log
        rate = {} if prefix else {"lr": self.optimizer.param_groups[0]["lr"]}
        values = {f"{prefix}{name}": value for name, value in {**terms, **rate}.items()}
        file.write(json.dumps({"step": step, **values}) + "\n")
        file.flush()
        if board is not None:
            for name, value in values.items():
                board.add_scalar(name, value, step)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The objective with its averaged weights, for evaluation."""
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

    def validate(self, step: int, validate: Validate) -> None:
        if self.accelerator.is_main_process:
            with self.averaged():
                folder = self.folder / "validation"
                folder.mkdir(parents=True, exist_ok=True)
                self.objective.export(folder)
                scores = validate(folder)
            self.log(step, scores, "validation/")
        self.accelerator.wait_for_everyone()

    def finish(self, export: Path | None) -> None:
        """The codec's files, then weights.safetensors, which says that the stage is done."""
        if self.accelerator.is_main_process:
            with self.averaged():
                if export is not None:
                    export.mkdir(parents=True, exist_ok=True)
                    self.objective.export(export)
                state = {key: value.detach().cpu().contiguous() for key, value in self.objective.state_dict().items()}
            with _replacing(self.folder / WEIGHTS) as temporary:
                save_file(state, temporary, {"recipe": json.dumps(self.identity)})
            (self.folder / CHECKPOINT).unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.free_memory()


def _positions(stage: Stage, accelerator: Accelerator, step: int) -> Iterator[list[int]]:
    """Positions in the data's order of this process's batches, from a step on: the batches of all processes lie side by side."""
    world, rank = accelerator.num_processes, accelerator.process_index
    for number in range(step * stage.accumulate, stage.steps * stage.accumulate):
        first = (number * world + rank) * stage.batch
        yield list(range(first, first + stage.batch))


def _mix(*numbers: int) -> int:
    """One seed of several numbers."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number + 1) % (1 << 63)
    return mixed


def _begin_with(objective: Objective, path: Path) -> None:
    """Weights of an earlier stage, or of a codec's exported files; networks that these lack keep their own start. CodecError."""
    own, state = (
        {key: value for key, value in tensors.items() if not key.endswith(TABLES)}  # these are made anew at each export
        for tensors in (objective.state_dict(), _weights(objective, path))
    )
    earlier = {key.partition(".")[0] for key in state}
    problems = [key for key in own if key.partition(".")[0] in earlier and key not in state]
    problems += [key for key, value in state.items() if key not in own or own[key].shape != value.shape]
    if problems:
        raise CodecError(f"{path} does not fit this stage ({len(problems)} tensors differ, such as {min(problems)})")
    objective.load_state_dict(state, strict=False)


def _weights(objective: Objective, path: Path) -> dict[str, Tensor]:
    """The tensors of a file; of a folder, those of the objective's codec at its point, and what its points share."""
    files, prefix = [path], ""
    if path.is_dir():
        if objective.codec is None:
            raise CodecError(f"start: {path} is a folder, and this objective trains no codec: name a stage's {WEIGHTS}")
        prefix = objective.prefix
        files = [path / f"{objective.codec}-{part}.safetensors" for part in (f"lambda{objective.point:g}", "shared")]
        if not files[0].is_file():
            raise CodecError(f"start: {path} has no {files[0].name}: name a folder that this point was exported to")
    return {prefix + key: value for file in files if file.is_file() for key, value in read_state(file).items()}


def _freeze_others(objective: Objective, only: list[str]) -> None:
    """CodecError where a name is nothing's."""
    parts = {name.partition(".")[0] for name, _ in objective.named_parameters()}
    if unknown := set(only) - parts:
        raise CodecError(f"only: there is no {', '.join(sorted(unknown))}; the parts are {', '.join(sorted(parts))}")
    for name, parameter in objective.named_parameters():
        if name.partition(".")[0] not in only:
            parameter.requires_grad_(False)


def _same(ours: Any, theirs: Any, folder: Path) -> None:
    if keys := sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key)):
        raise CodecError(f"{folder} was begun with another recipe ({', '.join(keys)} differ): choose another folder or delete it")


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file that takes the place of `path` once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    yield temporary
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
