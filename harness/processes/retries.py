"""What becomes of a unit of work whose worker is lost: the rules that the process pool and the Ray cluster share.

worker died   -> several series: one unit for each -> run again, up to `max_losses` -> reported as failed
time is over  -> several series: one unit for each -> reported as failed
no worker starts, `max_failed_starts` times in a row -> the run ends
"""

from __future__ import annotations

import math
from collections import Counter

from icmbench.harness.work.bench import Bench
from icmbench.harness.work.blocks import cell_name
from icmbench.harness.work.loop import WorkUnit
from icmbench.harness.work.outcome import Failure, Outcome


class RetryPolicy:
    """Counts lost workers and decides what runs instead of their units.

    Args:
        timeout: seconds that a codec and all tasks may take for one image; None for no limit.
        max_losses: how many workers a unit of one series may lose. A worker may be lost through no fault of its unit: an earlier
            unit left it without memory, or somebody killed it.
        max_failed_starts: how many workers in a row may be lost before any worker has come up.

    Attributes:
        overdue_reason: why a unit that exceeded its time limit failed, in one sentence.
    """

    def __init__(self, timeout: float | None, max_losses: int, max_failed_starts: int) -> None:
        self.timeout = math.inf if timeout is None else timeout
        self.max_losses = max_losses
        self.max_failed_starts = max_failed_starts
        self.overdue_reason = f"took longer than the experiment's timeout of {self.timeout:g} s an image"
        self._losses: Counter[WorkUnit] = Counter()
        self._failed_starts = 0

    def time_limit(self, unit: WorkUnit) -> float:
        """Seconds that a unit may take; infinite without a timeout."""
        return self.timeout * unit.images

    def after_loss(self, unit: WorkUnit) -> list[WorkUnit]:
        """Units to run instead of one whose worker was lost; none if the unit is to be reported as failed."""
        self._losses[unit] += 1
        return _by_series(unit) or ([unit] if self._losses[unit] < self.max_losses else [])

    def after_timeout(self, unit: WorkUnit) -> list[WorkUnit]:
        """Units to run instead of one that exceeded its time limit; none if the unit is to be reported as failed.

        A unit of one series is not tried again, because it would most likely take as long once more.
        """
        return _by_series(unit)

    def cannot_start(self, any_worker_up: bool) -> bool:
        """Count a lost worker, and tell whether workers seem unable to start at all.

        Args:
            any_worker_up: whether any of the present workers, the lost one included, had come up.
        """
        self._failed_starts = 0 if any_worker_up else self._failed_starts + 1
        return self._failed_starts > self.max_failed_starts


def _by_series(unit: WorkUnit) -> list[WorkUnit]:
    """One unit for each of several series, so that only the series at fault is lost in the end; none for a single series."""
    return [WorkUnit(unit.block, (k,)) for k in unit.series] if len(unit.series) > 1 else []


def failed_unit(bench: Bench, unit: WorkUnit, why: str) -> Outcome:
    """The outcome of a unit all cells of which failed for one reason."""
    return Outcome([Failure(cell_name(unit.block, bench.series[k]), why) for k in unit.series])
