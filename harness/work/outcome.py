"""What computing came to: failures and counts of calls."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from icmbench.harness.work.attempt import reason


@dataclass(frozen=True)
class Failure:
    """Something that could not be computed.

    Attributes:
        cell: name of the cell, followed by the task and the image if only these failed.
        reason: why, in one sentence.
    """

    cell: str
    reason: str


@dataclass
class Outcome:
    """What computing a unit of work came to; sums over several units are made with `add`.

    Attributes:
        failures: what could not be computed.
        codec_images: number of images that were compressed or decompressed.
        model_images: number of images that a task model predicted on, counted once per task.
        replaced: names of the cells in which another realisation took the place of one whose pixels are lost.
        out_of_memory: whether memory ran out on a single image, where no batch could be halved any more.
    """

    failures: list[Failure] = field(default_factory=list)
    codec_images: int = 0
    model_images: int = 0
    replaced: list[str] = field(default_factory=list)
    out_of_memory: bool = False

    def add(self, other: Outcome) -> None:
        """Add the failures and counts of another unit to these."""
        self.failures += other.failures
        self.codec_images += other.codec_images
        self.model_images += other.model_images
        self.replaced += other.replaced
        self.out_of_memory |= other.out_of_memory


def failures_of(cells: Iterable[str], error: Exception) -> list[Failure]:
    """One failure for each of the named cells, all for the same error."""
    return [Failure(cell, reason(error)) for cell in cells]
