"""`icmbench export`: the pictures that a run scored, as PNG files, for programs that predict on them elsewhere.

    FOLDER/export.json                                  which run this is, so that no other one is mixed with it
    FOLDER/coco/jpeg/sizes.csv                          image,point,bytes: with the folder beside it what the codec `folder` reads
    FOLDER/coco/jpeg/quality=20/000000000139.png
    FOLDER/coco/jpeg/quality=20/manifest.json           the pixels of every picture; written when all of them are there
    FOLDER/coco/uncompressed/000000000139.png           the photographs, as they were coded

Every file is whole or absent, so an export that was killed goes on with what it lacks. What is there is compared, never replaced.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from icmbench.harness.commands.export_pixels import ScoredPixels
from icmbench.harness.commands.export_plan import ExportedSeries, plan_export
from icmbench.harness.config.errors import UserError
from icmbench.harness.derive.recorded import RecordedRun, read_run
from icmbench.harness.store.keys import pixel_sha256
from icmbench.harness.store.references import run_address, run_identity
from icmbench.harness.store.whole_files import remove_leftovers, write_whole, writing
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.predictions_manifest import FORMAT, MANIFEST, ExportedImage, Manifest, read_manifest

RECORD = "export.json"
SIZES = "sizes.csv"


def export(address: str, codecs: Sequence[str], datasets: Sequence[str], target: Path) -> Iterator[str]:
    """Write the scored pictures of a run.

    Args:
        address: the run folder or its URL.
        codecs: labels of codecs, each alone or with a point; `uncompressed` stands for the photographs. Empty for all.
        datasets: names of datasets. Empty for all.
        target: the folder to write into; it may hold an earlier export of the same run.

    Yields:
        A line on each folder of pictures that is complete.

    Raises:
        UserError: a name is unknown, the run has no finished tables, the folder belongs to something else, or pixels cannot be had.
    """
    run = read_run(address)
    planned = plan_export(run, codecs, datasets)
    _claim(target, run)
    remove_leftovers(str(target))
    for part in planned:
        written = _export_series(run, part, target)
        left_out = f", {part.left_out} images without a stream left out" if part.left_out else ""
        yield f"{target / part.folder}: {len(part.images)} pictures, {written} of them new{left_out}"


def _claim(target: Path, run: RecordedRun) -> None:
    """Make the folder that of this run.

    Raises:
        UserError: it is another run's, or holds what no export wrote.
    """
    record = target / RECORD
    if target.exists() and not target.is_dir():
        raise UserError(f"--to: {target} is a file; name a folder, which need not exist yet")
    if target.is_dir() and not record.exists() and any(".tmp-" not in path.name for path in target.iterdir()):
        raise UserError(f"--to: {target} holds files that are no export's; name an empty or a new folder")
    mine = {"format": FORMAT, "icmbench": version("icmbench"), **_identity(run)}
    with writing(record):
        if write_whole(record, (json.dumps(mine, indent=1) + "\n").encode(), replace=False):
            return
    try:
        there: Any = json.loads(record.read_bytes())
        identity, is_known = there["identity"], there["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{record} is damaged: name another folder, or delete this export") from None
    if not is_known:
        raise UserError(f"{record} has format {there['format']!r}, and this icmbench writes {FORMAT!r}: name another folder")
    if identity != mine["identity"]:
        raise UserError(f"--to: {target} holds the export of another run, {there.get('run')}: name another folder")


def _identity(run: RecordedRun) -> dict[str, str]:
    """The run's name, its address, and what it is recognised by after it was moved."""
    address = run_address(run.folder)
    return {"identity": run_identity(run.folder) or address, "experiment": run.experiment.name, "run": address}


def _export_series(run: RecordedRun, part: ExportedSeries, target: Path) -> int:
    """Write what is missing of one series; return the number of new pictures."""
    folder = target / part.folder
    before = _read_earlier(folder / MANIFEST, part)
    absent = [image for image in part.images if not _is_there(folder / image.file, image)]
    pixels = ScoredPixels(run, part)
    for image, picture in pixels.read(absent):
        _write_picture(folder / image.file, image, picture)
    images = {image.id: image for image in (*before, *part.images)}
    manifest = Manifest(_facts(run, part), tuple(images[image_id] for image_id in sorted(images)))
    with writing(folder / MANIFEST):
        write_whole(folder / MANIFEST, manifest.to_bytes(), replace=True)
    if part.series is not None:
        _write_sizes(target / part.codec_folder)
    return len(absent)


def _facts(run: RecordedRun, part: ExportedSeries) -> dict[str, Any]:
    """What a manifest says beside its images."""
    series = part.series
    rate = "none" if series is None else "estimated" if series.estimated else "measured"
    codec = {"codec": part.label, "point": None, "seed": None} if series is None else {
        "codec": part.label, "point": series.point, "seed": series.seed
    }  # fmt: skip
    return {**_identity(run), "dataset": part.dataset, **codec, "rate": rate}


def _read_earlier(path: Path, part: ExportedSeries) -> tuple[ExportedImage, ...]:
    """The images that an earlier export listed.

    Raises:
        UserError: it listed an image with other pixels, another size or another file.
    """
    if not path.exists():
        return ()
    try:
        earlier = read_manifest(path).images
    except ModelError as error:
        raise UserError(f"{error}; or delete the folder {path.parent}") from None
    now = {image.id: image for image in part.images}
    owners = {image.file: image.id for image in part.images}
    for image in earlier:
        if now.get(image.id, image) != image or owners.get(image.file, image.id) != image.id:
            raise UserError(
                f"{path} lists image {image.id!r} with other pixels, size or file than the run has now: export into another "
                f"folder, or delete {path.parent} and all predictions that were made of it"
            )
    return earlier


def _is_there(path: Path, image: ExportedImage) -> bool:
    """Whether the picture is there.

    Raises:
        UserError: a file of its name holds other pixels.
    """
    if not path.exists():
        return False
    try:
        with Pillow.open(path, formats=["PNG"]) as picture:
            pixels = pixel_sha256(np.asarray(picture))
    except Exception:  # Pillow raises a dozen types on files that are no pictures.
        pixels = ""
    if pixels != image.pixels:
        raise UserError(f"{path} does not hold the pixels of {image.id!r} in this run: delete it, or name another folder")
    return True


def _write_picture(path: Path, image: ExportedImage, picture: Any) -> None:
    buffer = io.BytesIO()
    Pillow.fromarray(picture).save(buffer, "PNG", compress_level=1)
    with writing(path):
        is_written = write_whole(path, buffer.getvalue(), replace=False)
    if not is_written:
        _is_there(path, image)  # Another export was faster.


def _write_sizes(folder: Path) -> None:
    """Write the sizes of the streams of all points of a codec that are exported; estimated ones are none."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["image", "point", "bytes"])
    rows = 0
    for manifest in sorted(folder.glob(f"*/{MANIFEST}")):
        for image in read_manifest(manifest).images:
            if image.bytes is not None:
                writer.writerow([image.id, manifest.parent.name, image.bytes])
                rows += 1
    if rows:
        with writing(folder / SIZES):
            write_whole(folder / SIZES, lines.getvalue().encode(), replace=True)
