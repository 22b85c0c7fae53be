"""What `icmbench export` writes of a run: the pictures that were scored, as the tables of the run record them.

streams.parquet  ->  size and pixels of every stream, by codec, point, dataset and image
images.parquet   ->  pixels of the photographs
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from icmbench.harness.commands.export_names import file_names, folder_name
from icmbench.harness.config.errors import UserError, unknown_message
from icmbench.harness.config.experiment import UNCOMPRESSED
from icmbench.harness.derive.bound import Derived
from icmbench.harness.derive.deriving import STREAMS
from icmbench.harness.derive.recorded import RecordedRun
from icmbench.harness.store.pack_export import RecordedSeries
from icmbench.harness.store.parquet_files import read_table
from icmbench.tasks.models.predictions_manifest import ExportedImage

COLUMNS = ["codec", "point", "dataset", "id", "bytes", "height", "width", "sha256"]


@dataclass(frozen=True)
class ExportedSeries:
    """The pictures of one codec at one point and seed over one dataset, or its photographs.

    Attributes:
        dataset: the dataset's name.
        label: the codec's label.
        series: what the run recorded of the codec; None for the photographs.
        images: the pictures.
        left_out: how many images of the dataset have no stream.
    """

    dataset: str
    label: str
    series: RecordedSeries | None
    images: tuple[ExportedImage, ...]
    left_out: int

    @property
    def name(self) -> str:
        """The series as people read it."""
        return (
            f"{self.dataset} / {self.label}" if self.series is None else f"{self.dataset} / {self.label} {_point_name(self.series)}"
        )

    @property
    def codec_folder(self) -> str:
        """The folder of all points of the codec, below that of the export: what the codec `folder` takes as its `path`."""
        return f"{folder_name(self.dataset)}/{folder_name(self.label)}"

    @property
    def folder(self) -> str:
        """The folder of the pictures, below that of the export. Photographs have no point."""
        return self.codec_folder if self.series is None else f"{self.codec_folder}/{folder_name(_point_name(self.series))}"


def plan_export(run: RecordedRun, codecs: Sequence[str], datasets: Sequence[str]) -> list[ExportedSeries]:
    """What is exported of a run.

    Args:
        run: the run.
        codecs: labels of codecs, each alone or with a point; `uncompressed` stands for the photographs. Empty for all.
        datasets: names of datasets. Empty for all that a task of the run uses.

    Raises:
        UserError: a name is none of the run's, or the run has no finished tables.
    """
    Derived(run.folder).check(STREAMS)
    table = read_table(run.folder, STREAMS, COLUMNS)
    rows: dict[tuple[str, str, str], dict[str, tuple[int | None, int, int, str]]] = {}
    for codec, point, dataset, image_id, *facts in zip(*(table.column(name).to_pylist() for name in COLUMNS), strict=True):
        rows.setdefault((dataset, codec, point), {})[image_id] = tuple(facts)
    for name in datasets:
        if name not in run.datasets:
            raise UserError(f"--dataset {name}: {unknown_message('dataset', name, run.datasets)}")
    chosen = _choose(run, codecs)
    planned = []
    for dataset in datasets or run.datasets:
        shapes = {i: facts[1:3] for key, found in rows.items() if key[0] == dataset for i, facts in found.items()}
        files = file_names([image_id for image_id in run.images[dataset] if image_id in shapes])
        sources = run.hashes(dataset)
        for series in chosen:
            if series is None:
                photographs = [ExportedImage(i, files[i], sources[i], sources[i], *shapes[i], None) for i in files if i in sources]
                planned.append(ExportedSeries(dataset, UNCOMPRESSED, None, tuple(photographs), len(files) - len(photographs)))
                continue
            found = rows.get((dataset, series.label, _point_name(series)), {})
            images = [
                ExportedImage(i, files[i], found[i][3], sources.get(i, ""), found[i][1], found[i][2], found[i][0])
                for i in files
                if i in found
            ]
            planned.append(ExportedSeries(dataset, series.label, series, tuple(images), len(files) - len(images)))
    return planned


def _choose(run: RecordedRun, codecs: Sequence[str]) -> list[RecordedSeries | None]:
    """The chosen series; None stands for the photographs."""
    if not codecs:
        return [None, *run.series]
    chosen: list[RecordedSeries | None] = []
    for name in codecs:
        if name == UNCOMPRESSED:
            found: list[RecordedSeries | None] = [None]
        else:
            found = [series for series in run.series if name in _names_of(series)]
        if not found:
            known = _unique([UNCOMPRESSED, *(series.label for series in run.series), *map(_full_name, run.series)])
            raise UserError(f"--codec {name!r}: {unknown_message('codec', name, known)}")
        chosen += [series for series in found if series not in chosen]
    return chosen


def _names_of(series: RecordedSeries) -> set[str]:
    """What `--codec` may call a series: its label; or label and point, as tables name it or as the experiment file writes it."""
    points = {series.point, _point_name(series), str(series.given), f"{series.point} seed={series.seed}"}
    return {series.label, *(f"{series.label} {point}" for point in points)}


def _full_name(series: RecordedSeries) -> str:
    return f"{series.label} {_point_name(series)}"


def _point_name(series: RecordedSeries) -> str:
    """The rate point with its seed, as streams.parquet names it."""
    return series.point if series.seed is None else f"{series.point}.seed={series.seed}"


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
