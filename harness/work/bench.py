"""The experiment's live objects: datasets, codecs and tasks, each built once a process and when first needed."""

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
from icmbench.harness.store.shards import SOURCES, STREAMS, ImageBlock, Series, Sources, digest, pixel_sha256, stream_name
from icmbench.harness.store.store import Store, from_table, safe_name, to_table
from icmbench.harness.work.attempt import reason
from icmbench.tasks.base import Dataset, DatasetError, Image, Task

CACHE_BYTES = 256 * 2**20  # of source pixels a process keeps, so that a block is read once for all codecs


class Bench:
    """Built from an experiment and a store, in the parent and again in every worker."""

    def __init__(self, experiment: Experiment, store: Store) -> None:
        self.experiment = experiment
        self.store = store
        self._pixels: OrderedDict[tuple[str, str], Image] = OrderedDict()
        self._pixel_bytes = 0
        self._lock = threading.Lock()
        self._sources: dict[tuple[str, int], Sources] = {}
        self._scored: dict[str, frozenset[str]] = {}
        self._prepared: set[str] = set()
        self._streams: dict[str, pd.DataFrame] = {}

    def __reduce__(self) -> tuple[type[Bench], tuple[Experiment, Store]]:
        return Bench, (self.experiment, self.store)

    # --- plug-ins

    @cached_property
    def datasets(self) -> dict[str, Dataset]:
        built = {}
        for name, block in self.experiment.datasets.items():
            where = f"datasets.{name}"
            options = {key: value for key, value in block.items() if key != "kind"}
            own = options.get("limit")
            if own is not None and (not isinstance(own, int) or isinstance(own, bool) or own < 1):
                raise UserError(f"{where}.limit: a number of images, at least 1, not {own!r}")
            if self.experiment.limit is not None:
                options["limit"] = min(self.experiment.limit, own or self.experiment.limit)
            dataset = self._build("datasets", block["kind"], options, where, given={"name": name})
            if not dataset.ids:
                raise UserError(f"{where}: the dataset has no images")
            built[name] = dataset
        return built

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """Tasks by label."""
        built = {}
        for index, block in enumerate(self.experiment.tasks):
            where = f"tasks.{index}"
            given: dict[str, Any] = {"dataset": self.datasets[block.dataset], "reference": block.reference}
            if block.model is not None:
                options = {key: value for key, value in block.model.items() if key != "name"}
                given["model"] = self._build("models", block.model["name"], options, f"{where}.model")
                serves = given["model"].task
                if block.name not in ([serves] if isinstance(serves, str) else serves):
                    raise UserError(f"{where}.model: {block.model['name']!r} is a model for {serves}, not for {block.name}")
            task: Task = self._build("tasks", block.name, block.set, where, given)
            if block.reference == "original" and type(task).pseudo_targets is Task.pseudo_targets:
                raise UserError(f"{where}: task {block.name!r} has no pseudo-labels; remove `reference: original`")
            if not task.ids:
                raise UserError(f"{where}: dataset {block.dataset!r} was given no {task.annotation!r} annotations to score against")
            built[block.label] = task
        return built

    @cached_property
    def series(self) -> list[Series]:
        """All codecs at all points and seeds, after the originals."""
        built = [Series(UNCOMPRESSED, "-", None, None)]
        for index, block in enumerate(self.experiment.codecs):
            where = f"codecs.{index}"
            plugin = plugins.load("codecs", block.name, where)
            pack = self.packs.get(block.label)
            packed = list({str(p.given): p.given for p in pack.manifest.points}.values()) if pack else None
            points = block.points if block.points is not None else packed or getattr(plugin, "default_points", None)
            if not points:
                raise UserError(f"{where}.points: {block.name!r} has no default rate points; list some")
            if block.seeds and "seed" not in inspect.signature(plugin).parameters:
                raise UserError(f"{where}.seeds: codec {block.name!r} takes no seed; remove the key")
            seeds: list[int | None] = [*block.seeds] if block.seeds else [None]
            own: list[Series] = []
            for point in points:
                for seed in seeds:
                    codec = self._codec(block, where, point, seed)
                    own.append(Series(block.label, codec.point.label, seed, codec, point))
            names = [series.name for series in own]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice:
                raise UserError(f"{where}.points: {twice!r} is there twice")
            built += own
        return built

    @cached_property
    def packs(self) -> dict[str, Pack]:
        """Anchor packs by codec label."""
        return {block.label: Pack(self.experiment.folder / block.pack) for block in self.experiment.codecs if block.pack}

    def _codec(self, block: CodecSection, where: str, point: Any, seed: int | None) -> Codec:
        """One codec. With a pack, one whose encoder is not here may do, if it can be made to decode only."""
        pack = self.packs.get(block.label)
        given = {"point": point, "decode_only": False} | ({} if seed is None else {"seed": seed})
        if pack and pack.manifest.codec != block.name:
            raise UserError(f"{where}.pack: {pack.path} holds streams of {pack.manifest.codec!r}, not of {block.name!r}")
        try:
            codec: Codec = self._build("codecs", block.name, block.set, f"{where}.set", given)
        except UserError:
            if not pack or "decode_only" not in inspect.signature(plugins.load("codecs", block.name, where)).parameters:
                raise
            given["decode_only"] = True
            codec = self._build("codecs", block.name, block.set, f"{where}.set", given)
        lacking = [key for key in ("name", "point", "fingerprint", "compress", "decompress") if not hasattr(codec, key)]
        if lacking:
            raise UserError(f"{where}: codec {block.name!r} has no {lacking[0]!r}; see icmbench.codecs.base.Codec")
        if pack:
            pack.adopt(codec, where, bool(given["decode_only"]), seed)
        return codec

    def task_labels(self, dataset: str) -> list[str]:
        return [block.label for block in self.experiment.tasks if block.dataset == dataset]

    def scored(self, label: str, block: ImageBlock) -> list[str]:
        """The images of a block that a task scores."""
        if label not in self._scored:
            self._scored[label] = frozenset(self.tasks[label].ids)
        return [image_id for image_id in block.ids if image_id in self._scored[label]]

    def shares_originals(self, dataset: str) -> bool:
        """Whether a task on a dataset keeps features of the originals from one codec to the next."""
        return any(self.tasks[label].keeps_originals for label in self.task_labels(dataset))

    def tolerated(self, label: str) -> float:
        """How many of a task's images may fail."""
        allowed = self.experiment.fail_on_error
        if allowed is True:
            return 0
        return allowed if allowed >= 1 else allowed * len(self.tasks[label].ids)

    def prepare(self, label: str) -> None:
        """Give a task its context: from the store, or computed and stored."""
        task = self.tasks[label]
        if label in self._prepared or type(task).context is Task.context:
            return
        name = f"contexts/{digest(task.fingerprint)}.npz"
        if not self.store.exists(name):
            buffer = io.BytesIO()
            np.savez(buffer, **dict(task.context()))  # type: ignore[arg-type]
            self.store.write(name, buffer.getvalue(), replace=False)
        with np.load(io.BytesIO(self.store.read(name)), allow_pickle=False) as arrays:
            task.ready = dict(arrays)
        self._prepared.add(label)

    def _build(self, kind: str, name: str, options: dict[str, Any], where: str, given: dict[str, Any] | None = None) -> Any:
        plugin = plugins.load(kind, name, where)
        given = given or {}
        bound = bind(plugin, options, where, self.experiment.folder, tuple(given))
        accepted = inspect.signature(plugin).parameters
        if "model" in given and "model" not in accepted:
            raise UserError(f"{where}: {name!r} takes no model; remove the key")
        if "model" in accepted and accepted["model"].default is inspect.Parameter.empty and "model" not in given:
            raise UserError(f"{where}: {name!r} needs a `model`; `icmbench list models` names them")
        if given.get("reference") == "original" and "reference" not in accepted:
            raise UserError(f"{where}: {name!r} compares with the source by itself; remove `reference`")
        if "folder" in accepted and kind == "codecs":
            bound.setdefault("folder", self.experiment.folder)  # where relative programs and files start
        try:
            with plugins.explained(name, plugin):
                return plugin(**{key: value for key, value in given.items() if key in accepted}, **bound)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{where}: {name!r} cannot be made: {reason(error)}") from error

    # --- blocks and their pixels

    def blocks(self, dataset: str) -> list[ImageBlock]:
        ids, size = list(self.datasets[dataset].ids), self.experiment.shard_size
        return [ImageBlock(dataset, i // size, tuple(ids[i : i + size])) for i in range(0, len(ids), size)]

    def read(self, dataset: str, image_id: str) -> Image:
        """Source pixels, kept within a bound of bytes."""
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

    def keep_only(self, block: ImageBlock) -> None:
        """Forget the pixels of all other blocks."""
        wanted = {(block.dataset, image_id) for image_id in block.ids}
        with self._lock:
            for key in [key for key in self._pixels if key not in wanted]:
                self._pixel_bytes -= self._pixels.pop(key).nbytes

    def known_sources(self, block: ImageBlock) -> Sources | None:
        """Hashes of a block's pixels as far as they are stored and the files' sizes and mtimes are what they were."""
        place = (block.dataset, block.number)
        if place not in self._sources:
            name = self._sources_name(block)
            if not self.store.exists(name):
                return None
            rows = from_table(self.store.read_table(name), SOURCES.names)
            errors = {row["id"]: row["error"] for row in rows if row["error"]}
            if errors and self.experiment.fail_on_error is True:
                return None
            hashes = {row["id"]: row["sha256"] for row in rows}
            self._sources[place] = Sources(hashes, errors, {row["id"]: (row["height"], row["width"]) for row in rows})
        return self._sources[place]

    def sources(self, block: ImageBlock) -> Sources:
        """The same, hashing the pixels where need be. Raises DatasetError unless the experiment tolerates bad images."""
        known = self.known_sources(block)
        if known is None:
            rows = [self._source_row(block.dataset, image_id) for image_id in block.ids]
            self.store.write_table(self._sources_name(block), to_table(rows, SOURCES))
            known = self.known_sources(block)
            assert known is not None
        return known

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

    def streams(self, block: ImageBlock, series: Series) -> pd.DataFrame | None:
        """What is known of a block's streams but the bytes themselves, by image id; None where the shard is missing."""
        sources = self.known_sources(block)
        if sources is None:
            return None
        name = stream_name(block, sources, series)
        if name not in self._streams:
            if not self.store.exists(name):
                return None
            columns = [column for column in STREAMS.names if column != "data"]
            self._streams[name] = self.store.read_table(name, columns).to_pandas().set_index("id")
        return self._streams[name]


def read_only(image: Image) -> Image:
    """The same pixels, which no codec or task can change for those that come after it."""
    view = image.view()
    view.setflags(write=False)
    return view


def stat_or_none(path: Path) -> tuple[int, int] | None:
    """Size and mtime in nanoseconds; None for a file that is not there."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns
