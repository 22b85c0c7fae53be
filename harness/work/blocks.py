"""Blocks of images, which are computed together, and what is known of their source pixels."""

from __future__ import annotations

from dataclasses import dataclass, field

from icmbench.harness.work.series import AnySeries


@dataclass(frozen=True)
class ImageBlock:
    """Consecutive images of a dataset that are computed together. Blocks do not depend on the number of workers.

    Attributes:
        dataset: name of the dataset in the experiment.
        number: position of the block in the dataset, from 0.
        ids: the image ids.
    """

    dataset: str
    number: int
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Sources:
    """Facts about source pixels, by image id. An image that was neither read nor recorded is in none of the mappings.

    Attributes:
        sha256: `pixel_sha256` of each image that could be read.
        errors: why an image could not be read; only images that could not.
        shapes: height and width in pixels.
    """

    sha256: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)


def cell_name(block: ImageBlock, series: AnySeries) -> str:
    """A series over a block, as messages name it."""
    return f"{block.dataset} / {series.name} / block {block.number}"
