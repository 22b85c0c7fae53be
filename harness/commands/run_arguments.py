"""What the arguments of `icmbench run` and `icmbench demo` come to: how many processes, which GPUs, which part."""

from __future__ import annotations

import argparse
import math
import re

from icmbench.harness.commands.computing import RunOptions
from icmbench.harness.config.devices import deal_gpus
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.selection import Selection
from icmbench.harness.work.hardware import default_coders, default_models


def make_run_options(options: argparse.Namespace) -> RunOptions:
    """How to compute, as the arguments say.

    Raises:
        UserError: one of them is out of range, or two of them exclude each other.
    """
    workers, coders, models = _count_processes(options)
    if options.deal_tasks and not models:
        raise UserError("--deal-tasks says what the processes of --models hold: name their number too")
    shard = None
    if options.shard is not None:
        match = re.fullmatch(r"(\d+)/(\d+)", options.shard)
        shard = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= shard[0] <= shard[1]:
            raise UserError(f"--shard {options.shard}: write I/N with I from 1 to N")
    if not 0 <= options.progress < math.inf:
        raise UserError("--progress: a number of seconds, or 0 for no lines")
    if options.devices is not None and not (workers or coders):
        raise UserError("--devices deals GPUs to other processes: leave it out beside --workers 0")
    if options.devices is not None and options.executor == "ray":
        raise UserError("--devices deals the GPUs of this machine; on a Ray cluster, --gpus says how many each worker gets")
    return RunOptions(
        workers,
        coders,
        models,
        options.deal_tasks,
        options.executor,
        options.gpus,
        bool(options.keep),
        shard,
        max(0, options.images),
        options.progress,
        () if options.devices is None else tuple(deal_gpus(options.devices)),
        Selection.parse(getattr(options, "only", ())),
    )


def _count_processes(options: argparse.Namespace) -> tuple[int, int, int]:
    """Numbers of workers, coders and model processes that the arguments ask for."""
    if options.coders is None and options.models is None:
        if options.workers is not None and options.workers < 0:
            raise UserError("--workers: a number of processes, or 0 to compute in this one")
        return (options.default_workers if options.workers is None else options.workers), 0, 0
    if options.workers is not None:
        raise UserError("--workers processes code and hold the models at once: leave it out beside --coders and --models")
    models = default_models() if options.models is None else options.models
    coders = default_coders(models) if options.coders is None else options.coders
    for name, count in (("--coders", coders), ("--models", models)):
        if count < 1:
            raise UserError(f"{name}: at least 1 process")
    return 0, coders, models
