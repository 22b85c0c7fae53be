"""What one image costs: seconds and bytes, measured from the rows that the store holds of a codec point or task."""

from __future__ import annotations

import math
from dataclasses import dataclass

from icmbench.harness.store.parallel import for_each
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.series import Series


@dataclass(frozen=True)
class ImageCost:
    """The measured cost of one image.

    Attributes:
        images: number of images that were measured.
        seconds: median time of one worker.
        bytes: mean size in the run folder.
        megapixels: mean size of the measured images; NaN if the cost does not grow with the size.
    """

    images: int
    seconds: float
    bytes: float
    megapixels: float = float("nan")

    def of_images(self, images: int, megapixels: float) -> tuple[float, float]:
        """Seconds and bytes of so many images of a mean size."""
        scale = 1.0 if math.isnan(self.megapixels) else megapixels / self.megapixels
        return images * scale * self.seconds, images * scale * self.bytes


@dataclass(frozen=True)
class MeasuredCosts:
    """Costs of everything that has been computed.

    Attributes:
        codec: cost of encoding and decoding, by series name.
        task: cost of one prediction, by task label.
    """

    codec: dict[str, ImageCost]
    task: dict[str, ImageCost]

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of one image, by name of the series or label of the task."""
        return {name: cost.seconds for costs in (self.codec, self.task) for name, cost in costs.items()}


def measure(bench: Bench) -> MeasuredCosts:
    """Measure costs from all stored rows of the experiment's codec points and tasks, also those of other images.

    Args:
        bench: the experiment with its store.
    """
    bench.lookup.refresh(bench.series, bench.tasks, force=False)
    codec: dict[str, ImageCost] = {}
    task: dict[str, ImageCost] = {}
    series = [each for each in bench.series if isinstance(each, Series)]
    streams = [bench.lookup.collection(each) for each in series]
    predictions = [bench.lookup.predictions_of(each) for each in bench.tasks.values()]
    sizes = list(for_each(bench.store.folder.fs, lambda rows: rows.files.shard_bytes(), [*streams, *predictions]))
    for each, rows, size in zip(series, streams, sizes[: len(streams)], strict=True):
        if len(rows):
            times = ["seconds"] if each.estimated else ["encode_seconds", "decode_seconds"]
            frame = rows.facts(rows.all_rows(), [*times, "height", "width"]).to_pandas()
            seconds = frame[times].sum(axis=1, skipna=False).median()
            pixels = (frame["height"].astype("float64") * frame["width"]).mean()
            codec[each.name] = ImageCost(len(frame), float(seconds), size / len(frame), float(pixels / 1e6))
    for label, rows, size in zip(bench.tasks, predictions, sizes[len(streams) :], strict=True):
        if len(rows):
            seconds = rows.facts(rows.all_rows(), ["seconds"]).to_pandas()["seconds"].median()
            task[label] = ImageCost(len(rows), float(seconds), size / len(rows))
    return MeasuredCosts(codec, task)
