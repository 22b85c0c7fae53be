"""Anchor packs: a codec's streams of one run in one file, for other runs that then need not encode.

    pack.icmpack        a zip archive whose members are stored, not deflated; its comment is the SHA-256 of the manifest
      manifest.json     codec, points, fingerprints, versions; for each image the hashes of its source pixels, stream and pixels
      <sha256>          one stream, named by its own hash

A run matches streams to images by the hash of the source pixels, so dataset, block cut and file names may differ. Nothing in a pack
becomes a path, an option or code.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError

from icmbench.codecs.base import Codec, CodecError, RatePoint, decompress_all
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.sections import ConfigSection, first_error
from icmbench.harness.store.shards import ImageBlock, Series, Sources, pixel_sha256, stream_name
from icmbench.harness.store.store import Store, from_table, safe_name, whole_file, writing

MANIFEST = "manifest.json"
BROKEN = (OSError, EOFError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile)  # what zipfile raises for damaged archives
Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# As an experiment's `points:`. Words begin with a letter or digit: some codecs pass them to a command line.
Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.=+-]*$", max_length=80)]
Given = int | float | Word | dict[Word, int | float | Word]


class PackedStream(ConfigSection):
    """One image at one point. source, pixels: SHA-256 of the pixels before coding and after decoding, as `pixel_sha256`."""

    id: str
    source: Hash
    stream: Hash
    pixels: Hash
    bytes: int = Field(ge=1)
    encode_seconds: float


class PackedPoint(ConfigSection):
    """One rate point and seed. given: the entry of `points:` that makes it."""

    label: str
    given: Given
    seed: int | None
    fingerprint: str
    deterministic: bool
    streams: list[PackedStream] = Field(min_length=1)


class Manifest(ConfigSection):
    format: Literal["icmbench-pack-1"]
    codec: Word
    made: dict[str, str]  # with which versions, on which machine
    points: list[PackedPoint] = Field(min_length=1)


class Pack:
    """A pack opened for reading. Raises UserError that names the file where it is no whole pack."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
            members = self._archive.infolist()
            # Stored members that lie within the file, once each: reading them takes no more memory than the file's size.
            if any(m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size or m.flag_bits & 1 for m in members):
                raise UserError(f"{path}: not a pack: its members are compressed or encrypted")
            if sum(m.file_size for m in members) > path.stat().st_size or len({m.filename for m in members}) < len(members):
                raise UserError(f"{path}: not a pack: its members overlap")
            text = self._archive.read(MANIFEST)
        except BROKEN as error:
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
        """UserError where the pack has no such point."""
        for point in self.manifest.points:
            if (point.label, point.seed) == (label, seed):
                return point
        held = ", ".join(p.label if p.seed is None else f"{p.label} seed={p.seed}" for p in self.manifest.points)
        raise UserError(f"{self.path} has no point {label}{'' if seed is None else f' seed={seed}'}; it holds {held}")

    @cached_property
    def _by_source(self) -> dict[tuple[str, int | None], dict[str, PackedStream]]:
        return {(p.label, p.seed): {row.source: row for row in p.streams} for p in self.manifest.points}

    def rows(self, series: Series, sources: Sources) -> dict[str, PackedStream]:
        """What the pack holds of a series, by the ids of `sources`."""
        held = self._by_source[series.point, series.seed]
        return {image_id: held[pixels] for image_id, pixels in sources.sha256.items() if pixels in held}

    def data(self, row: PackedStream) -> bytes:
        """A stream. UserError unless it is the one that was packed."""
        try:
            data = self._archive.read(row.stream)
        except BROKEN as error:
            raise UserError(f"{self.path}: the stream of {row.id!r} cannot be read ({error}); fetch the pack again") from error
        found = hashlib.sha256(data).hexdigest()
        if found != row.stream or len(data) != row.bytes:
            raise UserError(f"{self.path}: the stream of {row.id!r} was altered: SHA-256 {found}, recorded {row.stream}")
        return data

    def check(self) -> int:
        """Read every stream; the number of them. UserError at the first that is missing or altered, or for a foreign member."""
        rows = {row.stream: row for point in self.manifest.points for row in point.streams}
        foreign = set(self._archive.namelist()) - {MANIFEST, *rows}
        if foreign:
            raise UserError(f"{self.path}: holds {min(foreign)!r}, which its manifest does not name")
        for point in self.manifest.points:
            for row in point.streams:
                self.data(row)
        return sum(len(point.streams) for point in self.manifest.points)

    def adopt(self, codec: Codec, where: str, decode_only: bool, seed: int | None) -> None:
        """Check that the pack was made by this codec; one that only decodes takes the pack's fingerprint. Raises UserError."""
        packed = self.point(codec.point.label, seed)
        if decode_only:
            codec.fingerprint = packed.fingerprint
        elif packed.fingerprint != codec.fingerprint:
            raise UserError(
                f"{where}.pack: {self.path} was made by another codec than {codec.name!r} {codec.point.label} here: "
                f"{difference(packed.fingerprint, codec.fingerprint)}; leave `pack` out to encode anew"
            )


def decode_sample(pack: Pack, make: Callable[[Any, Mapping[str, Any]], Codec]) -> Iterator[str]:
    """Decode the shortest stream of each point with the codec that `make(given, extra options)` gives; a sentence a point.

    Raises UserError where the same codec decodes to other pixels than it did where the pack was made.
    """
    for point in pack.manifest.points:
        name = f"{point.label}" if point.seed is None else f"{point.label} seed={point.seed}"
        extra = {} if point.seed is None else {"seed": point.seed}
        try:
            codec = _made(make, point.given, extra)
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


def _made(make: Callable[[Any, Mapping[str, Any]], Codec], given: Any, extra: Mapping[str, Any]) -> Codec:
    try:
        return make(given, extra)
    except (UserError, CodecError) as error:
        try:
            return make(given, {**extra, "decode_only": True})
        except TypeError:  # it has no such mode
            raise error from None


def difference(packed: str, here: str) -> str:
    """The first fact in which two fingerprints differ, both values named."""
    try:
        facts = [dict(_flat(json.loads(text))) for text in (packed, here)]
    except ValueError:
        facts = [{"fingerprint": packed}, {"fingerprint": here}]
    for key in sorted(facts[0].keys() | facts[1].keys()):
        a, b = (side.get(key, "nothing") for side in facts)
        if a != b:
            return f"{key} is {a} in the pack, {b} here"
    return "their fingerprints are written differently"


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key or "fingerprint", json.dumps(value)


# --- export


class _Recorded:
    """What environment.json says of a codec: enough to find its shards."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.name, self.fingerprint, self.deterministic = facts["codec"], facts["fingerprint"], facts["deterministic"]
        self.point = RatePoint(facts["point"], 0.0)


def export(run: str, label: str, out: Path) -> Manifest:
    """Write the streams of one codec of a run as a pack. Raises UserError."""
    store = Store(run)
    try:
        environment = json.loads(store.read("environment.json"))
        series = [facts for facts in environment["series"] if facts["label"] == label]
        datasets = list(environment["datasets"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run}: not the folder of a finished run ({error!r}); give the --out of `icmbench run`") from None
    if not series:
        raise UserError(f"{run} has no codec {label!r}; it has {', '.join(sorted({s['label'] for s in environment['series']}))}")
    if any(facts["measured_elsewhere"] for facts in series):
        raise UserError(f"{label!r} has no streams of its own, only sizes that were measured elsewhere: nothing to pack")
    made = {"icmbench": version("icmbench"), "python": environment["python"], "machine": environment["hardware"]["machine"]}
    points = []
    out.parent.mkdir(parents=True, exist_ok=True)
    with writing(out), whole_file(out) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        points = [_point(archive, run, facts, _streams(store, datasets, facts)) for facts in series]
        manifest = Manifest(format="icmbench-pack-1", codec=series[0]["codec"], made=made, points=points)
        text = manifest.model_dump_json().encode()
        archive.writestr(zipfile.ZipInfo(MANIFEST), text)
        archive.comment = hashlib.sha256(text).hexdigest().encode()
    return manifest


def _point(archive: zipfile.ZipFile, run: str, facts: dict[str, Any], streams: Iterator[tuple[str, dict[str, Any]]]) -> PackedPoint:
    """One point of the manifest, its streams written; of equal pictures the first."""
    rows: dict[str, dict[str, Any]] = {}
    for source, row in streams:
        if source in rows:
            continue
        stream = hashlib.sha256(row["data"]).hexdigest()
        if stream not in archive.NameToInfo:
            archive.writestr(zipfile.ZipInfo(stream), row["data"])
        facts_of_row = {"id": row["id"], "source": source, "stream": stream, "pixels": row["sha256"]}
        rows[source] = facts_of_row | {"bytes": len(row["data"]), "encode_seconds": row["encode_seconds"]}
    where = f"{run}: {facts['label']} {facts['point']}"
    if not rows:
        raise UserError(f"{where}: no streams; run the experiment first")
    kept = {key: facts[key] for key in ("given", "seed", "fingerprint", "deterministic")}
    try:
        return PackedPoint.model_validate({"label": facts["point"], "streams": list(rows.values()), **kept})
    except ValidationError as error:
        raise UserError(first_error(error, where)) from None


def _streams(store: Store, datasets: list[str], facts: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Source hash and row of every stream that the run's present codec made; shards of an earlier one have other names."""
    series = Series(facts["label"], facts["point"], facts["seed"], _Recorded(facts))  # type: ignore[arg-type]
    columns = ["id", "data", "encode_seconds", "sha256", "error"]
    for dataset in datasets:
        for file in store.names(f"sources/{safe_name(dataset)}"):
            sha256 = {row["id"]: row["sha256"] for row in from_table(store.read_table(file, ["id", "sha256"]), ["id", "sha256"])}
            block = ImageBlock(dataset, int(file.rpartition("/")[2].partition("-")[0]), tuple(sha256))
            name = stream_name(block, Sources(sha256, {}), series)
            if store.exists(name):
                rows = from_table(store.read_table(name, columns), columns)
                yield from ((sha256[row["id"]], row) for row in rows if not row["error"])
