"""Anchor packs: the streams of one codec of a run in one file. Other runs use them instead of encoding.

    pack.icmpack        a zip archive whose members are stored, not deflated; its comment is the SHA-256 of the manifest
      manifest.json     format, codec, points, fingerprints, versions; for each image the SHA-256 of source pixels, stream and
                        reconstruction
      <sha256>          one stream, named by its own SHA-256

A run matches streams to images by the hash of the source pixels, so its dataset names, blocks and file names may differ from those
of the run that was packed. Packs come from strangers: nothing in them is used as a path, an option or code.

The manifest's `format` is "icmbench-pack-1". A pack of another format is refused; the number is raised when a reader of the old
format would misread the new one.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError

from icmbench.codecs.base import Codec, CodecError, decompress_all
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.files import check_regular
from icmbench.harness.config.sections import ConfigSection, first_error
from icmbench.harness.store.keys import pixel_sha256

MANIFEST = "manifest.json"
# The errors that zipfile raises for damaged archives.
DAMAGE = (OSError, EOFError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile)
Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# Words begin with a letter or digit, because some codecs pass them to a command line, where a dash would begin an option.
Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.=+-]*$", max_length=80)]
# An entry of an experiment's `points`.
PointValue = int | float | Word | dict[Word, int | float | Word]


class PackedStream(ConfigSection):
    """One image at one rate point.

    Attributes:
        id: the image id in the run that was packed; only messages use it.
        source: `pixel_sha256` of the source pixels.
        stream: SHA-256 of the stream, which is also the name of its member.
        pixels: `pixel_sha256` of the reconstruction.
        bytes: length of the stream.
        encode_seconds: time that encoding took.
    """

    id: str
    source: Hash
    stream: Hash
    pixels: Hash
    bytes: int = Field(ge=1)
    encode_seconds: float


class PackedPoint(ConfigSection):
    """One rate point and seed of the codec.

    Attributes:
        label: label of the rate point.
        given: the entry of the experiment's `points` that the codec was constructed with.
        seed: the codec's seed, if the experiment listed seeds.
        fingerprint: the codec's fingerprint.
        deterministic: whether a stream always decodes to the same pixels.
        streams: one entry per image.
    """

    label: str
    given: PointValue
    seed: int | None
    fingerprint: str
    deterministic: bool
    streams: list[PackedStream] = Field(min_length=1)


class Manifest(ConfigSection):
    """The content of manifest.json.

    Attributes:
        format: name and number of the format.
        codec: entry point of the codec.
        made: versions of icmbench and Python and the machine on which the pack was made.
        points: the rate points and seeds.
    """

    format: Literal["icmbench-pack-1"]
    codec: Word
    made: dict[str, str]
    points: list[PackedPoint] = Field(min_length=1)


class Pack:
    """A pack opened for reading.

    Args:
        path: the file.

    Attributes:
        path: the file.
        sha256: SHA-256 of the manifest, which identifies the pack.
        manifest: the manifest.

    Raises:
        UserError: the file is no pack, is damaged, or its manifest was altered.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            check_regular(path, "pack")
            self._archive = zipfile.ZipFile(path)
            members = self._archive.infolist()
            # If all members are stored and do not overlap, reading them takes no more memory than the size of the file.
            if any(m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size or m.flag_bits & 1 for m in members):
                raise UserError(f"{path}: not a pack: its members are compressed or encrypted")
            if sum(m.file_size for m in members) > path.stat().st_size or len({m.filename for m in members}) < len(members):
                raise UserError(f"{path}: not a pack: its members overlap")
            text = self._archive.read(MANIFEST)
        except DAMAGE as error:
            raise UserError(f"{path}: not a whole pack ({error}); fetch it again") from error
        self.sha256 = hashlib.sha256(text).hexdigest()
        if self._archive.comment != self.sha256.encode():
            raise UserError(f"{path}: its manifest was altered: SHA-256 {self.sha256}, not {self._archive.comment[:64]!r}")
        try:
            self.manifest = Manifest.model_validate_json(text)
        except ValidationError as error:
            raise UserError(first_error(error, f"{path}: {MANIFEST}")) from None
        except RecursionError:
            raise UserError(f"{path}: {MANIFEST} is nested too deeply") from None

    def point(self, label: str, seed: int | None) -> PackedPoint:
        """The entry of a rate point and seed.

        Raises:
            UserError: the pack has no such entry.
        """
        for point in self.manifest.points:
            if (point.label, point.seed) == (label, seed):
                return point
        names = ", ".join(_point_name(point) for point in self.manifest.points)
        raise UserError(f"{self.path} has no point {label}{'' if seed is None else f' seed={seed}'}; it holds {names}")

    @cached_property
    def _by_source(self) -> dict[tuple[str, int | None], dict[str, PackedStream]]:
        return {(p.label, p.seed): {row.source: row for row in p.streams} for p in self.manifest.points}

    def rows(self, point: str, seed: int | None, sha256: Mapping[str, str]) -> dict[str, PackedStream]:
        """Entries of the images that the pack holds, by image id.

        Args:
            point: label of the rate point.
            seed: the codec's seed.
            sha256: hash of the source pixels of each image.
        """
        by_source = self._by_source[point, seed]
        return {image_id: by_source[source] for image_id, source in sha256.items() if source in by_source}

    def data(self, row: PackedStream) -> bytes:
        """Read a stream.

        Raises:
            UserError: the stream cannot be read, or it is not the one that was packed.
        """
        try:
            data = self._archive.read(row.stream)
        except DAMAGE as error:
            raise UserError(f"{self.path}: the stream of {row.id!r} cannot be read ({error}); fetch the pack again") from error
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 != row.stream or len(data) != row.bytes:
            raise UserError(f"{self.path}: the stream of {row.id!r} was altered: SHA-256 {sha256}, recorded {row.stream}")
        return data

    def check(self) -> int:
        """Read every stream.

        Returns:
            The number of streams.

        Raises:
            UserError: a stream is missing or was altered, or the archive has a member that the manifest does not name.
        """
        rows = {row.stream: row for point in self.manifest.points for row in point.streams}
        foreign = set(self._archive.namelist()) - {MANIFEST, *rows}
        if foreign:
            raise UserError(f"{self.path}: holds {min(foreign)!r}, which its manifest does not name")
        for point in self.manifest.points:
            for row in point.streams:
                self.data(row)
        return sum(len(point.streams) for point in self.manifest.points)

    def adopt(self, codec: Codec, key: str, decode_only: bool, seed: int | None) -> None:
        """Check that a codec is the one that made the pack.

        Args:
            codec: the codec at one of its rate points. With `decode_only` it takes over the fingerprint of the pack.
            key: key of the codec's section; error messages begin with it.
            decode_only: the codec's encoder is absent, so that its fingerprint cannot be computed.
            seed: the codec's seed, if the experiment lists seeds.

        Raises:
            UserError: the pack does not hold this rate point and seed, its fingerprint is another one, or the codec estimates its
                rate and can read no streams.
        """
        if hasattr(codec, "reconstruct"):
            raise UserError(f"{key}.pack: codec {codec.name!r} estimates its rate and reads no streams: leave `pack` out")
        packed = self.point(codec.point.label, seed)
        if decode_only:
            codec.fingerprint = packed.fingerprint
        elif packed.fingerprint != codec.fingerprint:
            raise UserError(
                f"{key}.pack: {self.path} was made by another codec than {codec.name!r} {codec.point.label} here: "
                f"{difference(packed.fingerprint, codec.fingerprint)}; leave `pack` out to encode anew"
            )


def decode_sample(pack: Pack, make_codec: Callable[[Any, Mapping[str, Any]], Codec]) -> Iterator[str]:
    """Decode the shortest stream of each point.

    Args:
        pack: the pack.
        make_codec: constructs the pack's codec from an entry of `points` and further options.

    Yields:
        For each point a sentence with the result, or with the reason why the codec cannot be used here.

    Raises:
        UserError: the codec that made the pack decodes a stream to other pixels than those recorded.
    """
    for point in pack.manifest.points:
        name = _point_name(point)
        extra = {} if point.seed is None else {"seed": point.seed}
        try:
            codec = _make_decoder(make_codec, point.given, extra)
            decode_only = not codec.fingerprint
            pack.adopt(codec, name, decode_only, point.seed)
        except (UserError, ValueError, RuntimeError, TypeError) as error:
            yield f"{name}: not decoded: {error}"
            continue
        row = min(point.streams, key=lambda row: row.bytes)
        image = decompress_all(codec, [pack.data(row)])[0]
        if not point.deterministic:
            yield f"{name}: {row.id!r} decodes; its pixels cannot be compared, for the decoder is not deterministic"
        elif pixel_sha256(image) == row.pixels:
            yield f"{name}: {row.id!r} decodes to the recorded pixels"
        else:
            raise UserError(f"{pack.path}: the stream of {row.id!r} at {name} decodes to other pixels than recorded")


def _point_name(point: PackedPoint) -> str:
    return point.label if point.seed is None else f"{point.label} seed={point.seed}"


def _make_decoder(make_codec: Callable[[Any, Mapping[str, Any]], Codec], point_value: Any, extra: Mapping[str, Any]) -> Codec:
    """Construct a codec; without its encoder if that is absent and the codec can do without."""
    try:
        return make_codec(point_value, extra)
    except (UserError, CodecError) as error:
        try:
            return make_codec(point_value, {**extra, "decode_only": True})
        except TypeError:  # The codec has no option `decode_only`.
            raise error from None


def difference(packed: str, here: str) -> str:
    """Name the first fact in which two fingerprints differ, with both values.

    Args:
        packed: the fingerprint in the pack.
        here: the fingerprint of the codec on this machine.
    """
    try:
        facts = [dict(_flatten(json.loads(text))) for text in (packed, here)]
    except ValueError:  # A codec of another package may write its fingerprint as plain text.
        facts = [{"fingerprint": packed}, {"fingerprint": here}]
    for key in sorted(facts[0].keys() | facts[1].keys()):
        a, b = (side.get(key, "nothing") for side in facts)
        if a != b:
            return f"{key} is {a} in the pack, {b} here"
    return "their fingerprints are written differently"


def _flatten(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every value below a JSON object, with its dotted key."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _flatten(item, f"{key}.{name}" if key else str(name))
    else:
        yield key or "fingerprint", json.dumps(value)
