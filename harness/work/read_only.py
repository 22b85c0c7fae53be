"""What a run may lack where its store can only be read: nothing, which is found out before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence

from icmbench.harness.config.errors import UserError
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.blocks import cell_name
from icmbench.harness.work.loop import WorkUnit
from icmbench.harness.work.todo import find_todo
from icmbench.tasks.base import DatasetError

REMEDY = "name a `store` that can be written, such as a copy by `icmbench store copy`"


def refuse_to_compute(bench: Bench, units: Sequence[WorkUnit], keep: bool) -> None:
    """Refuse units of work for which something would have to be written into the store.

    Their source pixels are read and hashed where the run folder has no record of them.

    Args:
        bench: the experiment and its store.
        units: the units that are not known to be complete.
        keep: whether every reconstruction is to be kept as a lossless picture.

    Raises:
        UserError: something is missing in the store, or an image cannot be read and the experiment tolerates no failures.
    """
    refuse_to_make_contexts(bench)
    incomplete = []
    for unit in units:
        try:
            sources = bench.source_pixels.hash_block(unit.block)
        except DatasetError as error:
            raise UserError(str(error)) from error
        bench.source_pixels.free_all_but(unit.block)
        for series in (bench.series[k] for k in unit.series):
            if not find_todo(bench, unit.block, series, sources, keep).done:
                incomplete.append(cell_name(unit.block, series))
    if incomplete:
        more = f" and {len(incomplete) - 1} more cells" if len(incomplete) > 1 else ""
        raise UserError(f"{bench.store.folder.root} can only be read, and lacks a part of {incomplete[0]}{more}: {REMEDY}")


def refuse_to_make_contexts(bench: Bench) -> None:
    """Refuse tasks whose context would have to be written into the store.

    Raises:
        UserError: one is not stored.
    """
    for label, task in bench.tasks.items():
        if task.has_context and not bench.store.has_context(task.context_fingerprint):
            raise UserError(f"{bench.store.folder.root} can only be read, and lacks the context of task {label!r}: {REMEDY}")
