"""The coder's side of the models: tasks that predict, and codecs on a GPU that encode and decode, in another process."""

from __future__ import annotations

import mmap
import pickle
import struct
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pyarrow as pa

from icmbench.harness.config.devices import OPTION
from icmbench.harness.processes.model_address import BEGUN_MESSAGE, Address
from icmbench.harness.processes.model_host import Request
from icmbench.harness.processes.shared_pixels import PixelFile, PixelWriter, map_pixels, remove_pixels
from icmbench.harness.work.attempt import ModelError
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.builder import Builder
from icmbench.harness.work.series import Series
from icmbench.tasks.base import Image, Prediction, Task

RETRIES = 1  # How often a request is sent again whose process was lost over it: that may have been killed from outside.
MAX_LOSSES = 50  # How often it is sent again in all; most often, its process was lost over the request of another coder.
START_SECONDS = 600.0  # Time for the process that replaces a lost one: models may load from a slow disk.


class Models(Protocol):
    """Whatever carries out requests elsewhere."""

    def ask(self, request: Request, sticky: bool) -> list[Any]:
        """Carry out a request whose pixels are arrays, in another process.

        Args:
            request: what to do.
            sticky: whether requests for the same images go to the same process, which keeps features of the originals.
        """


class LocalModels:
    """The model processes of this machine.

    Args:
        addresses: where they are reached.
        key: without it they do not answer.
        folder: for pixels, as `icmbench.harness.processes.shared_pixels.make_folder` returned it.
        homes: by label of a task, the processes that hold its model; see `deal`.
    """

    def __init__(self, addresses: Sequence[Address], key: bytes, folder: Path, homes: Mapping[str, Sequence[int]]) -> None:
        self._addresses, self._key, self._homes = addresses, key, homes
        self._writer = PixelWriter(folder)
        self._originals: dict[int, tuple[Image, PixelFile]] = {}  # By the identity of the array, which is kept alive.
        self._local = threading.local()  # Connections of each thread, for two may ask at once.

    def ask(self, request: Request, sticky: bool) -> list[Any]:
        """See `Models.ask`."""
        images = [self._writer.write(image) for image in request.images]
        originals = None if request.originals is None else [self._original(image) for image in request.originals]
        try:
            results = self._send(replace(request, images=images, originals=originals), sticky)
        finally:
            for file in images:
                remove_pixels(file)
        return [_take_pixels(result) if isinstance(result, PixelFile) else result for result in results]

    def forget_originals(self) -> None:
        """Remove the source pixels of a block that is done."""
        for _, file in self._originals.values():
            remove_pixels(file)
        self._originals.clear()

    def close(self) -> None:
        """Remove all pixels that were written."""
        self.forget_originals()
        self._writer.close()

    def _original(self, image: Image) -> PixelFile:
        """The file of source pixels, which are written once for all codecs and tasks."""
        if id(image) not in self._originals:
            self._originals[id(image)] = (image, self._writer.write(image))
        return self._originals[id(image)][1]

    def _send(self, request: Request, sticky: bool) -> list[Any]:
        index = self._choose(request, sticky)
        deaths = 0  # Of processes that had begun with this request.
        for attempt in range(MAX_LOSSES + 1):
            begun = False
            try:
                connection = self._connection(index)
                connection.send(request)
                answer = connection.recv_bytes()
                if answer == BEGUN_MESSAGE:
                    begun = True
                    answer = connection.recv_bytes()
                is_result, value = pickle.loads(answer)
                break
            except (EOFError, OSError) as error:
                self._connections().pop(index, None)
                deaths += begun
                if deaths > RETRIES or attempt == MAX_LOSSES:
                    what = f"{request.name}: the process that holds the models died {deaths} times on it"
                    raise ModelError(f"{what}, perhaps for want of memory: use fewer or smaller images in a batch") from error
        if is_result:
            return list(value)
        raise value

    def _choose(self, request: Request, sticky: bool) -> int:
        """Number of the process that is asked: of those that hold the model, the one with the fewest waiting requests."""
        homes = self._homes[request.name] if request.kind == "predict" else range(len(self._addresses))
        if sticky:
            return homes[zlib.crc32(request.ids[0].encode()) % len(homes)]
        return min(homes, key=lambda k: _read_length(self._addresses[k].queue)) if len(homes) > 1 else homes[0]

    def _connections(self) -> dict[int, Connection]:
        if not hasattr(self._local, "connections"):
            self._local.connections = {}
        connections: dict[int, Connection] = self._local.connections
        return connections

    def _connection(self, index: int) -> Connection:
        """The connection of this thread to a process, which may be starting."""
        connections = self._connections()
        deadline = time.monotonic() + START_SECONDS
        while index not in connections:
            try:
                connections[index] = Client(self._addresses[index].socket, authkey=self._key)
            except OSError:  # It has been lost, and its successor does not listen yet.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        return connections[index]


@dataclass(frozen=True)
class ModelsAddress:
    """How a coder process reaches the model processes; it is sent to the coder when that starts.

    Attributes:
        addresses: of each process.
        key: without it they do not answer.
        folder: for pixels.
        moved: the tasks that they carry out, by label.
        homes: by label, the processes that hold the model of a task; see `deal`.
    """

    addresses: tuple[Address, ...]
    key: bytes
    folder: Path
    moved: Mapping[str, MovedTask]
    homes: Mapping[str, tuple[int, ...]]

    def connect(self, bench: Bench) -> LocalModels:
        """Let the tasks of this process, and its codecs on a GPU, run in the model processes."""
        models = LocalModels(self.addresses, self.key, self.folder, self.homes)
        use_remote_models(bench, self.moved, models)
        return models


@dataclass(frozen=True)
class MovedTask:
    """What a coder needs of a task whose model is in another process. The model, and the libraries that it imports, stay out.

    The attributes are those of `icmbench.tasks.base.Task`; facts of images are listed for tasks that have any.
    """

    label: str
    name: str
    fingerprint: str
    schema: pa.Schema
    ids: tuple[str, ...]
    needs_originals: bool
    keeps_originals: bool
    image_facts: Mapping[str, Any]
    models: Models | None = None
    has_context: ClassVar[bool] = False  # Whoever predicts has the context.

    @classmethod
    def of(cls, label: str, task: Task) -> MovedTask:
        """The facts of a task, in a process where it was built."""
        facts = {image_id: task.facts(image_id) for image_id in task.ids}
        return cls(
            label,
            task.name,
            task.fingerprint,
            task.schema,
            tuple(task.ids),
            task.needs_originals,
            task.keeps_originals,
            {image_id: value for image_id, value in facts.items() if value is not None},
        )

    def facts(self, image_id: str) -> Any:
        """See `Task.facts`."""
        return self.image_facts.get(image_id)

    def pixel_facts(self, sha256: str) -> Any:
        """None; a task whose model has facts of pixels is not moved."""
        return None

    def predict(self, images: Sequence[Image], ids: Sequence[str], originals: Sequence[Image] | None = None) -> list[Prediction]:
        """See `Task.predict`; the images are uint8 (height, width, 3) each."""
        assert self.models is not None, "only a coder that is connected predicts"
        return self.models.ask(Request("predict", self.label, ids, images, originals), self.keeps_originals)


def move_tasks(bench: Bench) -> dict[str, MovedTask]:
    """The tasks of an experiment that predict in other processes: those that have a network.

    Tasks without one, such as the fidelity of pixels, stay with the coders, of which there are more. So do those whose model looks
    predictions up by pixels.
    """
    has_network = {
        label: (bool(bench.model_of(label)) and not hasattr(task.model, "pixel_facts")) or hasattr(task, OPTION)
        for label, task in bench.tasks.items()
    }
    return {label: MovedTask.of(label, task) for label, task in bench.tasks.items() if has_network[label]}


def deal(labels: Sequence[str], count: int, shares: bool) -> dict[str, tuple[int, ...]]:
    """Which of the model processes hold the model of each task.

    Args:
        labels: the tasks that predict there.
        count: number of processes.
        shares: whether each process holds a share of the tasks, so that no model is in memory more often than it must be, instead
            of all of them. Where there are more processes than tasks, some tasks have several.

    Example:
        >>> deal(["detection", "captions", "faces"], 2, shares=True)
        {'detection': (0,), 'captions': (1,), 'faces': (0,)}
    """
    if not shares:
        return {label: tuple(range(count)) for label in labels}
    dealt = [(labels[k % len(labels)], k % count) for k in range(max(count, len(labels)))] if labels else []
    return {label: tuple(process for dealt_label, process in dealt if dealt_label == label) for label in labels}


def use_remote_models(bench: Bench, moved: Mapping[str, MovedTask], models: Models) -> None:
    """Let tasks of an experiment, and its codecs on a GPU, run in other processes.

    All codecs may then work beside the loop, because no model runs in this process that they could disturb.

    Args:
        bench: the experiment in this process, whose tasks are not built yet.
        moved: the tasks that run elsewhere, by label.
        models: carries out the requests.
    """
    stay = [section for section in bench.experiment.tasks if section.label not in moved]
    part = bench.experiment.model_copy(update={"tasks": stay})
    built: dict[str, Any] = Builder(part, bench.store).tasks(bench.datasets) if stay else {}
    built |= {label: replace(task, models=models) for label, task in moved.items()}
    bench.tasks = {section.label: built[section.label] for section in bench.experiment.tasks}
    for series in bench.series:
        if isinstance(series, Series):
            series.background = True
            if series.on_gpu:
                _move_codec(series, models)


def _move_codec(series: Series, models: Models) -> None:
    """Let a codec encode and decode, or reconstruct, in another process."""

    def encode(images: Sequence[Image], ids: Sequence[str]) -> list[bytes]:
        return models.ask(Request("encode", series.name, ids, images), sticky=False)

    def decode(streams: Sequence[bytes]) -> list[Image]:
        return models.ask(Request("decode", series.name, streams=streams), sticky=False)

    def reconstruct(images: Sequence[Image], ids: Sequence[str]) -> list[tuple[Image, float]]:
        flat = models.ask(Request("reconstruct", series.name, ids, images), sticky=False)
        return list(zip(flat[::2], flat[1::2], strict=True))

    vars(series).update(encode=encode, decode=decode, reconstruct=reconstruct)


def _take_pixels(file: PixelFile) -> Image:
    """A reconstruction that the model process wrote, whose file is no longer needed."""
    image = map_pixels(file)
    remove_pixels(file)
    return image


def _read_length(path: str) -> int:
    with (
        suppress(OSError, struct.error),
        Path(path).open("rb") as file,
        mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ) as length,
    ):
        return int(struct.unpack("q", length[:8])[0])
    return 0
