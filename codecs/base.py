"""The codec contract: pixels to bytes and back.

    image --compress--> bytes --decompress--> image

An image is a `uint8` RGB array of shape (height, width, 3). Decoding needs the bytes and the codec, nothing else.

A codec that cannot write real bytes, because its authors published no entropy coder, gives pixels and estimated bits instead:

    image --reconstruct--> image, bits
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:  # `icmbench list` loads the codecs that look for programs, and must not wait for numpy.
    import numpy as np
    import numpy.typing as npt

Image: TypeAlias = "npt.NDArray[np.uint8]"  # RGB, (height, width, 3)
ParameterValue: TypeAlias = int | float | str  # of a rate point whose parameters the user names


class CodecError(RuntimeError):
    """An encoder cannot do its work: a program is missing, an option is bad, or a process fails or hangs."""


class BitstreamError(ValueError):
    """The bytes are not one whole stream of this codec: they are foreign, empty, truncated or altered."""


# The error message of an encoder that was built with decode_only=True.
DECODE_ONLY_MESSAGE = "{name}: made to decode the streams of a pack, which holds none of this image: its encoder is not here"


@dataclass(frozen=True)
class RatePoint:
    """One point of a codec's rate curve.

    Attributes:
        label: Name of the point, unique within the codec.
        order: Sort key along the curve. Its unit is the codec's own.
        parameters: What sets the rate, as JSON values by name.

    Example:
        >>> RatePoint("preset=slow,qp=32", -32, {"preset": "slow", "qp": 32}).parameters["qp"]
        32
    """

    label: str
    order: float
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, value: float) -> RatePoint:
        """The point of a codec whose rate one number sets, with that number as sort key.

        Example:
            >>> RatePoint.of("quality", 20)
            RatePoint(label='quality=20', order=20.0, parameters={'quality': 20})
        """
        return cls(f"{name}={value:g}", float(value), {name: value})


class Codec(Protocol):
    """A lossy or lossless image codec at one rate point.

    The harness finds the class by the entry point group `icmbench.codecs` and calls it as `Class(point, **options)`: `point` is
    one entry of `points:` in the experiment file (a number, a string or a mapping), `options` is its `set:`. The first line of
    the class docstring describes the codec in `icmbench list codecs`.

    Attributes:
        name: The codec's name in tables and streams.
        point: The rate point.
        fingerprint: Everything that decides the bytes and the pixels of all images, as made by `fingerprint()`. What a file holds
            for single images stays out of it and comes from `facts`.

    Optional class attributes, read with a default if a class lacks them:
        default_points: Rate points used if the experiment names none.
        weights: One line on the weights or programs that the codec needs: their source and licence.
        extra: The optional dependency group that installs what the codec imports, e.g. "jpegxl".
        usable_runs_programs (False): True if `usable` starts other programs; `icmbench list` then leaves it to `doctor`.
        deterministic (True): False if decoding the same stream twice may give different pixels.
        device ("cpu"): Where its networks run, as PyTorch names it. A codec on a GPU is run by the processes that hold the models.
        background (False): True if the codec uses one thread and no global state, so that it may run beside the task models.

    Optional methods:
        usable() -> str | None: A class method. The reason why this machine cannot run the codec, or None if it can.
        stream_options(data) -> dict[str, Any]: A class method. What a stream states of the codec that made it: constructor
            arguments by name, `point` among them if it does. `icmbench decode` constructs the codec with them, and refuses options
            of the user that differ. Raises BitstreamError for bytes that are no stream of this codec.
        compress_batch(images, ids) -> list[bytes]: `ids` are image ids, for codecs that find words, tags or whole streams by them.
        facts(image_id) -> Any: What decides the stream or the pixels of this image beside its source pixels and the fingerprint, as
            JSON values: its caption in a file of captions, the content of its file in a folder. None if nothing does. A codec
            whose result depends on image ids must have it, because the harness takes a stored stream for this image's only if
            fingerprint, source pixels and facts are equal. Another image's entry must not change them, nor may a digest of a whole
            file of entries stand in the fingerprint: a user who adds one image would pay for all others again. It is called for
            every image of every run, so it looks up what the constructor has read. It raises nothing for an image that lacks an
            entry, but returns other facts than with one, and `compress_batch` names what is missing.
        decompress_batch(streams) -> list[Image].
        rate_breakdown(data) -> dict[str, int]: Bits by part. The parts sum to the stream; `payload_bpp` leaves out "header".
        stream_bytes(data) -> int: The stream's size in bytes if it was measured elsewhere; otherwise the harness takes len(data).

    A codec whose rate can only be estimated has `reconstruct` instead of `compress` and `decompress`; a codec has exactly one of
    these two ways. Nothing of it is stored that could be decoded, so an image is reconstructed again wherever its pixels are
    needed again. Its curves are drawn hollow and share no BD-rate with curves of real bytes. `deterministic` says whether
    reconstructing an image again gives the same pixels; `facts`, `device`, `background` and seeds mean what they do for other
    codecs, and what is about streams has no meaning.
        reconstruct(image) -> tuple[Image, float]: The reconstruction, of the image's shape, and the bits that its stream would
            have: finite, above 0, and not rounded to bytes. Raises CodecError if the codec cannot reconstruct this image.
        reconstruct_batch(images, ids) -> list[tuple[Image, float]]: The same for several images with their ids; optional.

    Optional constructor arguments:
        seed: Set by `seeds:` of the experiment file, one codec per seed.
        decode_only (False): If True, what only the encoder needs may be missing: `compress` raises CodecError, and `fingerprint`
            may stay empty, because the harness takes it from the anchor pack that holds the streams.

    Example:
        A whole codec, which stores pixels packed by zlib:

        >>> import struct, zlib
        >>> import numpy as np
        >>> class Zlib:
        ...     '''Pixels packed by zlib, lossless.'''
        ...
        ...     name = "zlib"
        ...
        ...     def __init__(self, point):
        ...         self.point = RatePoint.of("level", point)
        ...         self.fingerprint = fingerprint(codec=self.name, version=1, level=point)
        ...
        ...     def compress(self, image):
        ...         level = self.point.parameters["level"]
        ...         return struct.pack("<HH", *image.shape[:2]) + zlib.compress(image.tobytes(), level)
        ...
        ...     def decompress(self, data):
        ...         try:
        ...             height, width = struct.unpack_from("<HH", data)
        ...             return np.frombuffer(zlib.decompress(data[4:]), np.uint8).reshape(height, width, 3)
        ...         except (struct.error, zlib.error, ValueError) as error:
        ...             raise BitstreamError(f"zlib: not a whole stream: {error}") from error

        >>> codec = Zlib(6)
        >>> codec.fingerprint
        '{"codec":"zlib","level":6,"version":1}'
        >>> image = np.zeros((64, 48, 3), np.uint8)
        >>> stream = codec.compress(image)
        >>> len(stream) < 100
        True
        >>> np.array_equal(codec.decompress(stream), image)
        True
        >>> codec.decompress(stream[:-9])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        icmbench.codecs.base.BitstreamError: zlib: not a whole stream: ...
    """

    name: str
    point: RatePoint
    fingerprint: str

    def compress(self, image: Image) -> bytes:
        """The stream of an image.

        Args:
            image: uint8 RGB, (height, width, 3).

        Raises:
            CodecError: the encoder cannot code this image, or fails.
        """

    def decompress(self, data: bytes) -> Image:
        """The reconstruction of a stream.

        Returns:
            uint8 RGB, (height, width, 3).

        Raises:
            BitstreamError: the bytes are not one whole stream of this codec. Bad bytes must raise no other error.
        """


def estimates_rate(codec: Any) -> bool:
    """Whether a codec gives pixels and estimated bits by `reconstruct` instead of streams.

    Args:
        codec: a codec.

    Raises:
        CodecError: it has neither of the two ways, or both of them. The message begins with `has`.

    Example:
        >>> class Estimating:
        ...     def reconstruct(self, image):
        ...         return image, 24.0 * image.shape[0] * image.shape[1]
        >>> estimates_rate(Estimating())
        True
    """
    lacking = [key for key in ("compress", "decompress") if not hasattr(codec, key)]
    if not hasattr(codec, "reconstruct"):
        if lacking:
            raise CodecError(f"has no {lacking[0]!r}")
        return False
    if len(lacking) < 2:
        present = "compress" if "compress" not in lacking else "decompress"
        raise CodecError(f"has both {present!r} and 'reconstruct': a codec writes real bytes, or it estimates its rate")
    return True


def reconstruct_all(codec: Any, images: Sequence[Image], ids: Sequence[str]) -> list[tuple[Image, float]]:
    """Reconstructions of a batch of images with their estimated bits, made by `reconstruct_batch` if the codec has it.

    Args:
        codec: a codec that estimates its rate.
        images: uint8 RGB arrays, (height, width, 3) each.
        ids: The images' ids, in the same order.
    """
    batch = getattr(codec, "reconstruct_batch", None)
    return list(batch(images, ids)) if batch else [codec.reconstruct(image) for image in images]


def compress_all(codec: Codec, images: Sequence[Image], ids: Sequence[str]) -> list[bytes]:
    """The streams of a batch of images, made by `compress_batch` if the codec has it.

    Args:
        codec: The codec.
        images: uint8 RGB arrays, (height, width, 3) each.
        ids: The images' ids, in the same order.
    """
    batch = getattr(codec, "compress_batch", None)
    return list(batch(images, ids)) if batch else [codec.compress(image) for image in images]


def decompress_all(codec: Codec, streams: Sequence[bytes]) -> list[Image]:
    """The reconstructions of a batch of streams, made by `decompress_batch` if the codec has it.

    Returns:
        uint8 RGB arrays, (height, width, 3) each.
    """
    batch = getattr(codec, "decompress_batch", None)
    return list(batch(streams)) if batch else [codec.decompress(data) for data in streams]


def fingerprint(**facts: Any) -> str:
    """Canonical JSON of everything that decides the bytes: parameters, weight hashes, library versions.

    It stays readable, so that the fingerprints of two runs can be compared fact by fact.

    Args:
        **facts: JSON values by name; other values enter as text. Include a `version`, raised by hand when bytes change.

    Example:
        >>> fingerprint(codec="jpeg", version=1, quality=20)
        '{"codec":"jpeg","quality":20,"version":1}'
    """
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), default=str)


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a weight file or program as hexadecimal digits.

    It is computed once per process, and again if the file's path, size or modification time differs.
    """
    stat = Path(path).stat()
    return _hash_file(str(path), stat.st_size, stat.st_mtime_ns)


def walk_files(folder: Path, skip: Callable[[Path], bool]) -> Iterator[Path]:
    """Every regular file in a folder and its subfolders.

    Links are followed, each folder once, so that a link to a folder above does not lead in circles. What is no regular file, such
    as a pipe, is left out, because reading it may never end.

    Args:
        folder: The folder.
        skip: Whether a file, or a folder with all that it holds, is left out.

    Raises:
        OSError: A folder cannot be read.
    """
    waiting, visited = [folder], set[Path]()
    while waiting:
        current = waiting.pop()
        if current.resolve() in visited:
            continue
        visited.add(current.resolve())
        for path in sorted(current.iterdir(), reverse=True):
            if skip(path):
                continue
            if path.is_dir():
                waiting.append(path)
            elif path.is_file():
                yield path


@functools.cache
def _hash_file(path: str, size: int, mtime_ns: int) -> str:
    value = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):  # Python 3.10, in which a guest may run this, has no hashlib.file_digest.
            value.update(chunk)
    return value.hexdigest()
