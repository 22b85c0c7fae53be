"""The pixels that a run scored, had again: from kept pictures, from stored streams, or from the photographs.

    picture kept in the store -> stored stream, decoded once -> photograph, reconstructed where the codec estimates its rate

Whatever the way, pixels count only if they have the hash that the run recorded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from icmbench.harness.commands.export_plan import ExportedSeries
from icmbench.harness.config.errors import UserError
from icmbench.harness.derive.recorded import RecordedRun
from icmbench.harness.derive.stand_ins import RecordedBuilder
from icmbench.harness.store.collection import Collection
from icmbench.harness.store.keys import pixel_sha256
from icmbench.harness.store.pack_export import RecordedSeries
from icmbench.harness.store.store import Store
from icmbench.harness.work.attempt import reason
from icmbench.harness.work.builder import Builder
from icmbench.harness.work.series import Series
from icmbench.tasks.base import Dataset, Image
from icmbench.tasks.models.predictions_manifest import ExportedImage

BATCH = 8  # Images that are decoded together.


class ScoredPixels:
    """The pixels of one series of a run. The codec and the dataset are made only where kept pictures do not suffice.

    Args:
        run: the run.
        part: the series.
    """

    def __init__(self, run: RecordedRun, part: ExportedSeries) -> None:
        self._run, self._part = run, part
        self._store = Store(run.store.root)

    def read(self, images: Sequence[ExportedImage]) -> Iterator[tuple[ExportedImage, Image]]:
        """Images with their pixels, uint8 (height, width, 3), in order.

        Raises:
            UserError: the pixels that were scored cannot be had again.
        """
        for start in range(0, len(images), BATCH):
            chunk = images[start : start + BATCH]
            kept = {image.id: self._store.load_picture(image.pixels) for image in chunk}
            made = self._make([image for image in chunk if kept[image.id] is None])
            for image in chunk:
                picture = kept[image.id]
                yield image, made[image.id] if picture is None else picture

    def _make(self, images: Sequence[ExportedImage]) -> dict[str, Image]:
        """Pixels that were not kept, by image id."""
        if not images:
            return {}
        try:
            if self._part.series is None:
                made = [self._dataset.read(image.id) for image in images]
            elif self._part.series.estimated:
                sources = [self._dataset.read(image.id) for image in images]
                made = [picture for picture, _ in self._series.reconstruct(sources, [image.id for image in images])]
            else:
                made = self._series.decode(self._streams(images))
        except UserError:
            raise
        except Exception as error:  # A codec or dataset of another package may raise anything.
            raise UserError(f"{self._part.name}: its pictures were not kept and cannot be made again: {reason(error)}") from error
        for image, picture in zip(images, made, strict=True):
            if pixel_sha256(picture) != image.pixels:
                raise UserError(self._explain_other_pixels(image))
        return {image.id: picture for image, picture in zip(images, made, strict=True)}

    def _streams(self, images: Sequence[ExportedImage]) -> list[bytes]:
        lacking = next((image for image in images if image.pixels not in self._rows), None)
        if lacking is not None:
            place = self._collection.folder.full_path(self._collection.place)
            raise UserError(f"{self._part.name}: {place} has no stream of {lacking.id!r} any more: run the experiment again")
        rows = np.array([self._rows[image.pixels] for image in images])
        data: list[bytes] = self._collection.read(rows, ["data"]).column(0).to_pylist()
        return data

    def _explain_other_pixels(self, image: ExportedImage) -> str:
        place = f"{self._part.name}: image {image.id!r}"
        if self._part.series is None:
            return f"{place} has other pixels now than those that were scored: give the photographs of the run, or run it again"
        if not self._part.series.deterministic:
            return (
                f"{place}: the codec gives other pixels each time, and those that were scored were not kept: run the experiment "
                "with --keep reconstructions into a new folder"
            )
        return (
            f"{place}: decodes to other pixels here than those that were scored: use the build of the codec that decoded it "
            "then, or run with --keep reconstructions where that is"
        )

    @property
    def _recorded(self) -> RecordedSeries:
        assert self._part.series is not None, "photographs have no codec"
        return self._part.series

    @cached_property
    def _dataset(self) -> Dataset:
        return RecordedBuilder(self._run).dataset(self._part.dataset)

    @cached_property
    def _series(self) -> Series:
        """The codec at its point and seed, made here. Raises UserError if it cannot be."""
        recorded, experiment = self._recorded, self._run.experiment
        section = next(section for section in experiment.codecs if section.label == recorded.label)
        part = experiment.model_copy(update={"codecs": [section], "only_points": (recorded.point,)})
        builder = Builder(part, self._store)
        for series in builder.series(builder.packs()):
            if isinstance(series, Series) and (series.point, series.seed) == (recorded.point, recorded.seed):
                return series
        raise UserError(f"{self._part.name}: the codec has no such point here: use the build that the run was made with")

    @cached_property
    def _collection(self) -> Collection:
        """The stored streams of the series."""
        collection = self._store.streams(json.dumps([self._recorded.fingerprint, self._recorded.seed]))
        collection.refresh()
        return collection

    @cached_property
    def _rows(self) -> dict[str, int]:
        """The number of a stored stream by the hash of the pixels that it decoded to; equal pixels are as good as each other."""
        rows = self._collection.all_rows()
        return dict(zip(self._collection.facts(rows, ["sha256"]).column(0).to_pylist(), rows.tolist(), strict=True))
