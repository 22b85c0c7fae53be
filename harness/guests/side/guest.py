"""The guest's side: runs in a foreign Python interpreter, loads codecs and models there, and calls them for icmbench.

    icmbench (parent)  -- request -->  this file  -- call -->  adapter or built-in class  -->  the authors' library
                       <-- answer --

It needs Python 3.8 or newer and numpy, and imports nothing of icmbench, because it must run where icmbench cannot be installed. The
parent imports the messages of this file too, so that both sides share one implementation.

A message is a prefix, a header in JSON and raw buffers. Nothing is pickled: a stream or an array of a guest can be read, but never
run. Large buffers lie in a file in memory that the parent made, which both sides map. Each side writes into its own file, and
leaves alone there what the other side still uses, which each message says. Requests and answers alternate.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import mmap
import os
import pathlib
import platform
import struct
import sys
import threading
import time
import traceback
import types
import weakref
from typing import Any, Callable, Iterable, Sequence

import numpy as np

PROTOCOL = 1  # Raised when messages change. A parent of another version is refused at the handshake.
PREFIX = struct.Struct("<4sIQ")  # The letters ICMG, length of the header, length of the buffers that follow it.
SHARED_FROM = 32768  # Buffers of at least this many bytes cross in shared memory, smaller ones in the pipe.
ALIGNMENT = 64
READ_SIZE = 65536  # Bytes that a pipe holds by default.
GROWTH = 1 << 20  # Files in memory grow by whole multiples of this many bytes.
MAX_HEADER = 1 << 30  # A longer header is no message: something else has written into the pipe.
VERSIONS = ("numpy", "torch")  # Packages whose versions decide results, and are therefore part of every key.
WATCH_SECONDS = 0.2  # How often a guest looks whether its parent still lives.


class ProtocolError(RuntimeError):
    """What came is no message of this protocol, or holds what cannot cross."""


class CannotCrossError(ProtocolError):
    """A value is of a kind that no message holds. Nothing was sent."""


class SharedFile:
    """A file in memory with the large buffers of one direction.

    Args:
        descriptor: the open file. Both sides map it, and the writer lets it grow.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._map: Any = None

    def write(self, views: Sequence[memoryview], held: Iterable[Sequence[int]] = ()) -> list[int] | None:
        """Copy buffers into the file, one after the other.

        Args:
            views: flat memory views of bytes.
            held: pairs of offset and size that the reader still uses.

        Returns:
            The offset of each; None if the machine has no room for them.
        """
        sizes = [-(-view.nbytes // ALIGNMENT) * ALIGNMENT for view in views]
        start = _find_gap(sum(sizes), held)
        if not self._reserve(start + sum(sizes)):
            return None
        offsets = []
        for view, size in zip(views, sizes):
            self._map[start : start + view.nbytes] = view
            offsets.append(start)
            start += size
        return offsets

    def read(self, offset: int, size: int) -> memoryview:
        """A flat memory view of a buffer that the other side wrote."""
        if self._map is None or len(self._map) < offset + size:
            length = os.fstat(self._descriptor).st_size
            if length < offset + size:
                raise ProtocolError(f"a message names {size} bytes at {offset} of a file of {length}")
            self._map = mmap.mmap(self._descriptor, length)
        return memoryview(self._map)[offset : offset + size]

    def _reserve(self, size: int) -> bool:
        """Let the file grow. Space that is only promised would end this process on its first write, so it is allocated."""
        if self._map is not None and len(self._map) >= size:
            return True
        size = -(-size // GROWTH) * GROWTH
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._descriptor, 0, size)
            else:
                os.ftruncate(self._descriptor, size)
        except OSError:
            return False
        self._map = mmap.mmap(self._descriptor, size)
        return True


def _find_gap(size: int, held: Iterable[Sequence[int]]) -> int:
    """The lowest offset from which `size` bytes do not overlap with what is held."""
    start = 0
    for offset, length in sorted(tuple(region) for region in held):
        if start + size <= offset:
            break
        start = max(start, -(-(offset + length) // ALIGNMENT) * ALIGNMENT)
    return start


class _Region(np.ndarray):
    """The bytes of one buffer in shared memory. Every array that is made of it keeps it alive, so that its end can be seen."""


class Channel:
    """Sends and receives messages.

    Args:
        reading: file descriptor that messages come from.
        writing: file descriptor that messages go to.
        incoming: `SharedFile` of the other side.
        outgoing: `SharedFile` of this side.
        wait: called before each read, with the descriptor; it returns when there is something to read.
        copies: whether arrays that come in are copies. Otherwise they lie in shared memory, which is theirs as long as they live.
    """

    def __init__(
        self,
        reading: int,
        writing: int,
        incoming: SharedFile,
        outgoing: SharedFile,
        wait: Callable[[int], None] | None = None,
        copies: bool = True,
    ) -> None:
        self._reading, self._writing = reading, writing
        self._incoming, self._outgoing = incoming, outgoing
        self._wait, self._copies = wait, copies
        self._used_here: list[
            tuple[int, int, Any]
        ] = []  # Offset, size and a weak reference of each region that arrays of this side lie in.
        self._used_there: Iterable[Sequence[int]] = ()  # What the other side said of this side's file with its last message.

    def send(self, value: Any) -> None:
        """Send a value of JSON's types, bytes, tuples, paths and numpy arrays, nested in any way.

        Raises:
            CannotCrossError: the value holds something else.
            OSError: nobody is left to read it.
        """
        buffers: list[memoryview] = []
        tree = _to_tree(value, buffers)
        large = [k for k, view in enumerate(buffers) if view.nbytes >= SHARED_FROM]
        offsets = self._outgoing.write([buffers[k] for k in large], self._used_there) if large else []
        places = dict(zip(large, offsets)) if offsets is not None else {}
        self._used_here = [region for region in self._used_here if region[2]() is not None]
        header = {
            "tree": tree,
            "buffers": [[view.nbytes, places.get(k)] for k, view in enumerate(buffers)],
            "held": [region[:2] for region in self._used_here],
        }
        inline = [view for k, view in enumerate(buffers) if k not in places]
        text = json.dumps(header).encode()
        prefix = PREFIX.pack(b"ICMG", len(text), sum(view.nbytes for view in inline))
        view = memoryview(b"".join([prefix, text, *inline]))
        while view:
            view = view[os.write(self._writing, view) :]

    def receive(self) -> Any:
        """The next message.

        Raises:
            ProtocolError: the bytes are no message.
            EOFError: the other side is gone.
        """
        data = self._read_at_least(PREFIX.size, bytearray())
        letters, header_size, inline_size = PREFIX.unpack_from(data)
        if letters != b"ICMG" or header_size > MAX_HEADER:
            raise ProtocolError("these bytes are no message of icmbench")
        start = PREFIX.size + header_size
        data = self._read_at_least(start + inline_size, data)
        header = json.loads(data[PREFIX.size : start].decode())
        self._used_there = header["held"]
        inline = memoryview(data)[start:]
        buffers: list[Any] = []
        for size, offset in header["buffers"]:
            if offset is None:
                buffers.append(np.frombuffer(inline[:size], np.uint8) if size else np.empty(0, np.uint8))
                inline = inline[size:]
            else:
                buffers.append(self._from_shared_memory(offset, size))
        return _from_tree(header["tree"], buffers)

    def _from_shared_memory(self, offset: int, size: int) -> Any:
        """The bytes of a large buffer, uint8 (size,)."""
        # Made of the memory itself: of an array it would be a view, and arrays made of it would keep that one alive in its place.
        region = _Region((size,), np.uint8, self._incoming.read(offset, size))
        if self._copies:
            return region.view(np.ndarray).copy()
        self._used_here.append((offset, size, weakref.ref(region)))
        return region.view(np.ndarray)

    def _read_at_least(self, size: int, data: bytearray) -> bytearray:
        """Read on until there are `size` bytes. A message ends where the next side speaks, so no more than one is ever read."""
        while len(data) < size:
            if self._wait is not None:
                self._wait(self._reading)
            part = os.read(self._reading, max(READ_SIZE, size - len(data)))
            if not part:
                raise EOFError("the other side closed the connection")
            data += part
        return data


def _to_tree(value: Any, buffers: list[memoryview]) -> Any:
    """A value as JSON, in which what is no JSON is a mapping with the key "$"; bytes of arrays are appended to `buffers`."""
    if value is None or isinstance(value, (bool, str)) or type(value) in (int, float):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        buffers.append(memoryview(value).cast("B"))
        return {"$": "bytes", "buffer": len(buffers) - 1}
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        if array.dtype.hasobject:
            raise CannotCrossError("an array of Python objects cannot cross between interpreters; give numbers or a list")
        flat = np.ascontiguousarray(array).reshape(-1)
        buffers.append(flat.view(np.uint8).data if flat.size else memoryview(b""))
        kind = "array" if isinstance(value, np.ndarray) else "number"
        return {"$": kind, "dtype": array.dtype.str, "shape": array.shape, "buffer": len(buffers) - 1}
    if isinstance(value, pathlib.PurePath):
        return {"$": "path", "value": str(value)}
    if isinstance(value, list):
        return [_to_tree(item, buffers) for item in value]
    if isinstance(value, (tuple, set, frozenset)):
        return {"$": "tuple", "items": [_to_tree(item, buffers) for item in value]}
    if hasattr(value, "items") and callable(value.items):
        if all(isinstance(key, str) for key in value) and "$" not in value:
            return {key: _to_tree(item, buffers) for key, item in value.items()}
        return {"$": "mapping", "items": [[_to_tree(key, buffers), _to_tree(item, buffers)] for key, item in value.items()]}
    if isinstance(value, (int, float)):  # A subclass, such as an enumeration's member.
        return int(value) if isinstance(value, int) else float(value)
    raise CannotCrossError(
        f"a {type(value).__module__}.{type(value).__name__} cannot cross between interpreters; "
        "give numpy arrays, bytes, numbers, text, lists or mappings"
    )


def _from_tree(tree: Any, buffers: Sequence[Any]) -> Any:
    """The value of a tree, with its buffers as arrays of bytes."""
    if isinstance(tree, list):
        return [_from_tree(item, buffers) for item in tree]
    if not isinstance(tree, dict):
        return tree
    kind = tree.get("$")
    if kind is None:
        return {key: _from_tree(item, buffers) for key, item in tree.items()}
    if kind == "bytes":
        return buffers[tree["buffer"]].tobytes()
    if kind in ("array", "number"):
        dtype = np.dtype(tree["dtype"])
        if dtype.hasobject:
            raise ProtocolError("an array of Python objects came in")
        data = buffers[tree["buffer"]]
        data = data if data.flags.writeable else data.copy()  # Small ones come with the message, which cannot be written.
        array = data.view(dtype).reshape(tree["shape"]) if data.size else np.empty(tree["shape"], dtype)
        return array if kind == "array" else array[()]
    if kind == "path":
        return pathlib.Path(tree["value"])
    if kind == "tuple":
        return tuple(_from_tree(item, buffers) for item in tree["items"])
    if kind == "mapping":
        return {_from_tree(key, buffers): _from_tree(item, buffers) for key, item in tree["items"]}
    raise ProtocolError(f"a message holds the unknown kind {kind!r}")


class Server:
    """Loads classes, makes objects of them, and calls their methods, as the requests ask.

    Args:
        packages: folders of icmbench's packages, by dotted name, so that a built-in adapter can be imported without installing it.
    """

    def __init__(self, packages: dict[str, str]) -> None:
        self._objects: list[Any] = []
        self._modules: dict[str, Any] = {}
        for name, folder in packages.items():
            module = types.ModuleType(name)
            module.__path__ = [folder] if folder else []
            sys.modules[name] = module
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, module)

    def answer(self, request: dict[str, Any]) -> Any:
        """Carry out a request: a mapping with `do` and its arguments."""
        return getattr(self, "do_" + request.pop("do"))(**request)

    def do_versions(self) -> dict[str, Any]:
        """What is installed here: the interpreter and the packages that decide results, and all packages for the record."""
        from importlib import metadata

        packages: dict[str, str] = {}
        for distribution in metadata.distributions():
            name = distribution.metadata["Name"]
            if name and name.lower() not in packages:  # The first one on the path is the one that is imported.
                packages[name.lower()] = distribution.version
        return {
            "python": platform.python_version(),
            "implementation": platform.python_implementation(),
            "machine": platform.machine(),
            **{name: packages.get(name) for name in VERSIONS},
            "packages": dict(sorted(packages.items())),
        }

    def do_describe(self, source: dict[str, str], wanted: list[str]) -> dict[str, Any]:
        """What a class says of itself before an object is made: its parameters, its description, and the wanted attributes."""
        plugin = self._load(source)
        parameters = []
        for parameter in inspect.signature(plugin).parameters.values():
            annotation = parameter.annotation
            parameters.append(
                {
                    "name": parameter.name,
                    "kind": parameter.kind.name,
                    "required": parameter.default is parameter.empty,
                    "is_path": annotation is not parameter.empty and "Path" in str(annotation),
                }
            )
        return {"parameters": parameters, "doc": inspect.getdoc(plugin) or "", "members": _members(plugin, wanted)}

    def do_make(self, source: dict[str, str], arguments: dict[str, Any], wanted: list[str]) -> dict[str, Any]:
        """Make an object and keep it.

        Returns:
            Its number, the wanted attributes that it has, the names of its methods, and the names of all its public attributes.
        """
        made = self._load(source)(**arguments)
        self._objects.append(made)
        kind = type(made)
        methods = [name for name in dir(kind) if callable(inspect.getattr_static(kind, name, None)) or _is_method(kind, name)]
        return {
            "number": len(self._objects) - 1,
            "members": _members(made, wanted),
            "methods": [name for name in methods if not name.startswith("_") or name == "__call__"],
            "names": [name for name in dir(made) if not name.startswith("_")],
        }

    def do_call(self, number: int, method: str, arguments: list[Any]) -> Any:
        """Call a method of an object that was made."""
        return _plain(getattr(self._objects[number], method)(*arguments))

    def do_map(self, number: int, method: str, items: list[Any]) -> list[Any]:
        """Call a method once with each of many arguments, which costs one message instead of as many as there are items."""
        call = getattr(self._objects[number], method)
        return [_plain(call(item)) for item in items]

    def do_get(self, number: int, name: str) -> Any:
        """An attribute of an object, which may be computed when it is first asked for."""
        return _plain(getattr(self._objects[number], name))

    def _load(self, source: dict[str, str]) -> Any:
        """The class of an adapter file or of a module. One that was changed since it was loaded is not mixed with the old one."""
        if "module" in source:
            return getattr(importlib.import_module(source["module"]), source["class"])
        path = source["file"]
        if path not in self._modules:
            name = "icmbench_adapter_" + hashlib.sha256(path.encode()).hexdigest()[:8]
            spec: Any = importlib.util.spec_from_file_location(name, path)
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module  # Dataclasses and subclasses of networks look themselves up there.
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[name]
                raise
            self._modules[path] = module
        return getattr(self._modules[path], source["class"])


def _is_method(kind: type, name: str) -> bool:
    """Whether an attribute of a class is a class method or a static one; properties are no methods."""
    return isinstance(inspect.getattr_static(kind, name, None), (classmethod, staticmethod))


def _members(owner: Any, wanted: Iterable[str]) -> dict[str, Any]:
    """Those of the wanted attributes that an object or class has."""
    return {name: _plain(getattr(owner, name)) for name in wanted if hasattr(owner, name)}


def _plain(value: Any) -> Any:
    """A result as values that can cross: tensors on any device become arrays, and a rate point a mapping."""
    if hasattr(value, "detach") and hasattr(value, "numpy"):
        return value.detach().cpu().numpy()
    if hasattr(value, "label") and hasattr(value, "order") and hasattr(value, "parameters"):
        return {"label": value.label, "order": value.order, "parameters": dict(value.parameters)}
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _describe_error(error: BaseException) -> dict[str, Any]:
    """An error as it crosses: the names of its class and of those above it, its text, and its traceback for standard error."""
    text = f"sys.exit, {error.code!r}" if isinstance(error, SystemExit) else str(error)
    classes = [kind.__name__ for kind in type(error).__mro__ if kind is not object]
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    module = getattr(error, "name", None) if isinstance(error, ImportError) else None
    return {"classes": classes, "text": " ".join(text.split()), "place": place, "module": module}


def _end_with_parent(parent: int) -> None:
    """End once the parent was killed, even while a library computes."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _answer(server: Server, channel: Channel, print_tracebacks: bool) -> dict[str, Any]:
    """Wait for a request and carry it out. The request is gone when the answer is sent, so that its pixels are free again."""
    request = channel.receive()
    try:
        return {"result": server.answer(request)}
    except (Exception, SystemExit) as error:
        if print_tracebacks and type(error).__name__ != "BitstreamError":  # `guest check` provokes that one.
            traceback.print_exc()
        return {"error": _describe_error(error)}


def main() -> None:
    """Answer requests until the parent closes the connection. Arguments: four file descriptors and the parent's process id."""
    reading, writing, incoming, outgoing, parent = (int(argument) for argument in sys.argv[1:6])
    for descriptor in (reading, writing, incoming, outgoing):
        os.set_inheritable(descriptor, False)  # Programs that the guest starts must not hold the connection open.
    os.dup2(2, 1)  # What libraries print belongs to standard error, whatever they print it with.
    sys.stdout = sys.stderr
    sys.argv[1:] = []  # Some authors' modules parse the command line when they are imported.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder or ".") != here]
    _end_with_parent(parent)
    process = os.getpid()
    channel = Channel(reading, writing, SharedFile(incoming), SharedFile(outgoing), copies=False)
    channel.send({"protocol": PROTOCOL})
    try:
        start = channel.receive()
        sys.path[:0] = start["path"]
        server = Server(start["packages"])
        channel.send({"result": "ready"})
        while True:
            answer = _answer(server, channel, start["print_tracebacks"])
            if os.getpid() != process:
                os._exit(0)  # The adapter forked and both returned: the connection belongs to the parent of the two.
            try:
                channel.send(answer)
            except CannotCrossError as error:
                channel.send({"error": _describe_error(error)})
            del answer  # It may hold what the request brought, which must not count as still in use.
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        os._exit(0)  # Libraries may hold threads that would keep this process alive.


if __name__ == "__main__":
    main()
