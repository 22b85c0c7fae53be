"""The experiment's live objects: datasets, codecs and tasks, each built when first needed and once per process."""

from __future__ import annotations

import inspect
import io
import threading
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from icmbench.codecs.base import Codec
from icmbench.harness.config import plugins
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import UNCOMPRESSED, CodecSection, Experiment
from icmbench.harness.config.options import bind
from icmbench.harness.store.pack import Pack
from icmbench.harness.store.shards import (
    SOURCES,
    STREAMS,
    ImageBlock,
    Series,
    Sources,
    digest,
    pixel_sha256,
    refuse_shared_names,
    stream_name,
)
from icmbench.harness.store.store import Store, from_table, safe_name, to_table
from icmbench.harness.work.attempt import reason
from icmbench.tasks.base import Dataset, DatasetError, Image, Task

CACHE_BYTES = 256 * 2**20  # Source pixels that a process keeps in memory, so that a block is read once for all codecs.


class Bench:
    """Datasets, codecs, tasks and source pixels of one experiment, and what its store already records of them.

    It is built in the parent process and again in every worker: only the experiment and the store are pickled.

    Args:
        experiment: the validated experiment file.
        store: the run folder.
    """

    def __init__(self, experiment: Experiment, store: Store) -> None:
        refuse_shared_names("datasets", experiment.datasets)
        refuse_shared_names("codecs", [UNCOMPRESSED, *(section.label for section in experiment.codecs)])
        refuse_shared_names("tasks", [section.label for section in experiment.tasks])
        self.experiment = experiment
        self.store = store
        self._pixels: OrderedDict[tuple[str, str], Image] = OrderedDict()
        self._pixel_bytes = 0
        self._lock = threading.Lock()
        self._sources: dict[tuple[str, int], Sources] = {}
        self._scored: dict[str, frozenset[str]] = {}
        self._loaded_contexts: set[str] = set()
        self._stream_frames: dict[str, pd.DataFrame] = {}

    def __reduce__(self) -> tuple[type[Bench], tuple[Experiment, Store]]:
        return Bench, (self.experiment, self.store)

    # Building the plug-ins.

    @cached_property
    def datasets(self) -> dict[str, Dataset]:
        """Datasets by name, cut to the experiment's limit. Raises UserError if one cannot be built or is empty."""
        built = {}
        for name, section in self.experiment.datasets.items():
            where = f"datasets.{name}"
            options = {key: value for key, value in section.items() if key != "kind"}
            limit = options.get("limit")
            if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
                raise UserError(f"{where}.limit: a number of images, at least 1, not {limit!r}")
            if self.experiment.limit is not None:
                options["limit"] = min(self.experiment.limit, limit or self.experiment.limit)
            dataset = self._build("datasets", section["kind"], options, where, supplied={"name": name})
            if not dataset.ids:
                raise UserError(f"{where}: the dataset has no images")
            built[name] = dataset
        return built

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """Tasks by label. Raises UserError if one cannot be built, has no images, or cannot score as the experiment asks."""
        built = {}
        for index, section in enumerate(self.experiment.tasks):
            where = f"tasks.{index}"
            supplied: dict[str, Any] = {"dataset": self.datasets[section.dataset], "reference": section.reference}
            if section.model is not None:
                options = {key: value for key, value in section.model.items() if key != "name"}
                supplied["model"] = self._build("models", section.model["name"], options, f"{where}.model")
                serves = supplied["model"].task
                if section.name not in ([serves] if isinstance(serves, str) else serves):
                    raise UserError(f"{where}.model: {section.model['name']!r} is a model for {serves}, not for {section.name}")
            task: Task = self._build("tasks", section.name, section.set, where, supplied)
            if section.reference == "original" and not task.has_pseudo_labels:
                raise UserError(f"{where}: task {section.name!r} has no pseudo-labels; remove `reference: original`")
            if not task.ids:
                lacking = f"was given no {task.annotation!r} annotations to score against"
                raise UserError(f"{where}: dataset {section.dataset!r} {lacking}")
            built[section.label] = task
        return built

    @cached_property
    def series(self) -> list[Series]:
        """The originals, and then all codecs at all points and seeds. Raises UserError if a codec cannot be built."""
        built = [Series(UNCOMPRESSED, "-", None, None)]
        for index, section in enumerate(self.experiment.codecs):
            where = f"codecs.{index}"
            plugin = plugins.load("codecs", section.name, where)
            pack = self.packs.get(section.label)
            packed = list({str(p.given): p.given for p in pack.manifest.points}.values()) if pack else None
            points = section.points if section.points is not None else packed or getattr(plugin, "default_points", None)
            if not points:
                raise UserError(f"{where}.points: {section.name!r} has no default rate points; list some")
            if section.seeds and "seed" not in inspect.signature(plugin).parameters:
                raise UserError(f"{where}.seeds: codec {section.name!r} takes no seed; remove the key")
            seeds: list[int | None] = [*section.seeds] if section.seeds else [None]
            series_of_codec: list[Series] = []
            for point in points:
                for seed in seeds:
                    codec = self._build_codec(section, where, point, seed)
                    series_of_codec.append(Series(section.label, codec.point.label, seed, codec, point))
            names = [series.name for series in series_of_codec]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice:
                raise UserError(f"{where}.points: {twice!r} is listed twice")
            refuse_shared_names(f"{where}.points", [series.point_name for series in series_of_codec])
            built += series_of_codec
        return built

    @cached_property
    def packs(self) -> dict[str, Pack]:
        """Anchor packs by codec label. Raises UserError if one cannot be read."""
        return {section.label: Pack(self.experiment.folder / section.pack) for section in self.experiment.codecs if section.pack}

    def _build_codec(self, section: CodecSection, where: str, point: Any, seed: int | None) -> Codec:
        """A codec at one point. Where a pack has its streams, a codec that can only decode replaces one that cannot be built."""
        pack = self.packs.get(section.label)
        supplied = {"point": point, "decode_only": False} | ({} if seed is None else {"seed": seed})
        if pack and pack.manifest.codec != section.name:
            raise UserError(f"{where}.pack: {pack.path} holds streams of {pack.manifest.codec!r}, not of {section.name!r}")
        try:
            codec: Codec = self._build("codecs", section.name, section.set, f"{where}.set", supplied)
        except UserError:
            if not pack or "decode_only" not in inspect.signature(plugins.load("codecs", section.name, where)).parameters:
                raise
            supplied["decode_only"] = True
            codec = self._build("codecs", section.name, section.set, f"{where}.set", supplied)
        lacking = [key for key in ("name", "point", "fingerprint", "compress", "decompress") if not hasattr(codec, key)]
        if lacking:
            raise UserError(f"{where}: codec {section.name!r} has no {lacking[0]!r}; see icmbench.codecs.base.Codec")
        if pack:
            pack.adopt(codec, where, bool(supplied["decode_only"]), seed)
        return codec

    def task_labels(self, dataset: str) -> list[str]:
        """Labels of the tasks on one dataset."""
        return [section.label for section in self.experiment.tasks if section.dataset == dataset]

    def scored_ids(self, label: str, block: ImageBlock) -> list[str]:
        """The images of a block that a task scores."""
        if label not in self._scored:
            self._scored[label] = frozenset(self.tasks[label].ids)
        return [image_id for image_id in block.ids if image_id in self._scored[label]]

    def shares_originals(self, dataset: str) -> bool:
        """Whether a task on a dataset keeps features of the originals from one codec to the next."""
        return any(self.tasks[label].keeps_originals for label in self.task_labels(dataset))

    def max_failed_images(self, label: str) -> float:
        """How many of a task's images may fail before the task has no score."""
        allowed = self.experiment.fail_on_error
        if allowed is True:
            return 0
        return allowed if allowed >= 1 else allowed * len(self.tasks[label].ids)

    def load_context(self, label: str) -> None:
        """Give a task its context, once per process: the stored one, or a new one, which is stored first."""
        task = self.tasks[label]
        if label in self._loaded_contexts or not task.has_context:
            return
        name = f"contexts/{digest(task.context_fingerprint)}.npz"
        if not self.store.exists(name):
            buffer = io.BytesIO()
            try:
                np.savez(buffer, **dict(task.context()))  # type: ignore[arg-type]
            except (Exception, SystemExit) as error:
                if isinstance(error, UserError) or type(error).__module__.startswith("icmbench."):
                    raise
                raise UserError(f"task {label!r}: its context cannot be made: {reason(error)}") from error
            self.store.write(name, buffer.getvalue(), replace=False)
        task.ready = self.store.read_arrays(name)
        self._loaded_contexts.add(label)

    def _build(self, kind: str, name: str, options: dict[str, Any], where: str, supplied: dict[str, Any] | None = None) -> Any:
        """A plug-in made from the options of the experiment file and the arguments that the harness supplies."""
        plugin = plugins.load(kind, name, where)
        supplied = supplied or {}
        bound = bind(plugin, options, where, self.experiment.folder, tuple(supplied))
        accepted = inspect.signature(plugin).parameters
        if "model" in supplied and "model" not in accepted:
            raise UserError(f"{where}: {name!r} takes no model; remove the key")
        if "model" in accepted and accepted["model"].default is inspect.Parameter.empty and "model" not in supplied:
            raise UserError(f"{where}: {name!r} needs a `model`; `icmbench list models` names them")
        if supplied.get("reference") == "original" and "reference" not in accepted:
            raise UserError(f"{where}: {name!r} compares with the source by itself; remove `reference`")
        if "folder" in accepted and kind == "codecs":
            bound.setdefault("folder", self.experiment.folder)  # Relative paths of programs and files start here.
        try:
            with plugins.explain_missing_package(name, plugin):
                return plugin(**{key: value for key, value in supplied.items() if key in accepted}, **bound)
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # A plug-in of another package may raise anything, also for a path that is absent.
            raise UserError(f"{where.removesuffix('.set')} ({name}): {name!r} cannot be made: {reason(error)}") from error

    # Blocks of images and their pixels.

    def blocks(self, dataset: str) -> list[ImageBlock]:
        """A dataset cut into blocks of the experiment's `shard_size` images; the last one may be smaller."""
        ids, size = list(self.datasets[dataset].ids), self.experiment.shard_size
        return [ImageBlock(dataset, i // size, tuple(ids[i : i + size])) for i in range(0, len(ids), size)]

    def read(self, dataset: str, image_id: str) -> Image:
        """Source pixels, read-only uint8 (height, width, 3); the latest ones are kept in memory, up to `CACHE_BYTES`.

        Raises:
            DatasetError: the image cannot be read.
        """
        key = (dataset, image_id)
        with self._lock:
            if key in self._pixels:
                self._pixels.move_to_end(key)
                return self._pixels[key]
            image = read_only(self.datasets[dataset].read(image_id))
            self._pixels[key] = image
            self._pixel_bytes += image.nbytes
            while self._pixel_bytes > CACHE_BYTES and len(self._pixels) > 1:
                _, dropped = self._pixels.popitem(last=False)
                self._pixel_bytes -= dropped.nbytes
            return image

    def drop_pixels_except(self, block: ImageBlock) -> None:
        """Free the source pixels of all blocks but one."""
        keep = {(block.dataset, image_id) for image_id in block.ids}
        with self._lock:
            for key in [key for key in self._pixels if key not in keep]:
                self._pixel_bytes -= self._pixels.pop(key).nbytes

    def stored_sources(self, block: ImageBlock) -> Sources | None:
        """Recorded hashes and shapes of a block's source pixels; no image is read.

        Returns:
            None if there is no record for the present sizes and modification times of the image files, or if the record names
            images that cannot be read and the experiment does not tolerate failures.
        """
        key = (block.dataset, block.number)
        if key not in self._sources:
            name = self._sources_name(block)
            if not self.store.exists(name):
                return None
            rows = from_table(self.store.read_table(name), SOURCES.names)
            errors = {row["id"]: row["error"] for row in rows if row["error"]}
            if errors and self.experiment.fail_on_error is True:
                return None
            hashes = {row["id"]: row["sha256"] for row in rows}
            self._sources[key] = Sources(hashes, errors, {row["id"]: (row["height"], row["width"]) for row in rows})
        return self._sources[key]

    def sources(self, block: ImageBlock) -> Sources:
        """Hashes and shapes of a block's source pixels: the recorded ones, or new ones, which are recorded first.

        Raises:
            DatasetError: an image cannot be read, and the experiment does not tolerate failures.
        """
        sources = self.stored_sources(block)
        if sources is None:
            rows = [self._source_row(block.dataset, image_id) for image_id in block.ids]
            self.store.write_table(self._sources_name(block), to_table(rows, SOURCES))
            sources = self.stored_sources(block)
            assert sources is not None
        return sources

    def _sources_name(self, block: ImageBlock) -> str:
        dataset = self.datasets[block.dataset]
        stats = {image_id: stat_or_none(dataset.path(image_id)) for image_id in block.ids}
        key = digest([dataset.preprocessing, stats])
        return f"sources/{safe_name(block.dataset)}/{block.number:05d}-{key}.parquet"

    def _source_row(self, dataset: str, image_id: str) -> dict[str, Any]:
        row: dict[str, Any] = {**dict.fromkeys(SOURCES.names), "id": image_id}
        try:
            image = self.read(dataset, image_id)
        except DatasetError as error:
            if self.experiment.fail_on_error is True:
                raise
            return row | {"error": str(error)}
        return row | {"height": image.shape[0], "width": image.shape[1], "sha256": pixel_sha256(image)}

    def stream_frame(self, block: ImageBlock, series: Series) -> pd.DataFrame | None:
        """The columns of `STREAMS` but `data`, indexed by image id; None if the stream shard of the block is missing."""
        sources = self.stored_sources(block)
        if sources is None:
            return None
        name = stream_name(block, sources, series)
        if name not in self._stream_frames:
            if not self.store.exists(name):
                return None
            columns = [column for column in STREAMS.names if column != "data"]
            self._stream_frames[name] = self.store.read_table(name, columns).to_pandas().set_index("id")
        return self._stream_frames[name]


def read_only(image: Image) -> Image:
    """A view of an image that no codec or task can write to, so that all of them get the same pixels."""
    view = image.view()
    view.setflags(write=False)
    return view


def stat_or_none(path: Path) -> tuple[int, int] | None:
    """Size in bytes and modification time in nanoseconds; None if there is no such file."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns
