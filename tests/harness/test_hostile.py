"""Hostile names, pictures and labels: nothing is written outside the run folder or reaches terminal or report as code."""

import csv
import json
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from icmbench.codecs.base import CodecError
from icmbench.codecs.folder import Folder
from icmbench.harness.commands.computing import RunOptions
from icmbench.harness.commands.run import run
from icmbench.harness.config.experiment import load_experiment
from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.coco import Coco
from icmbench.tasks.datasets.flickr30k import Flickr30k
from icmbench.tasks.datasets.imagenet import ImageNet
from icmbench.tasks.datasets.images import list_images, read_image
from icmbench.tasks.datasets.refcoco import RefCoco

NAMES = [
    "<script>alert(1)<script>.png",
    "%2e%2e%2f%2e%2e%2fevil.png",
    "\x1b[2J\r\n\x07.png",
    "-rf ~ $(touch evil) `id` ;|&.png",
    "\u202egnp.exe.png",
    "x" * 200 + ".png",
    "\u65e5" * 80 + ".png",
    "a\\..\\..\\evil.png",
    "'\"{{7*7}}{% raw %}.png",
]
LABEL = "../../<img src=x onerror=alert(1)>\x7f" + "x" * 4000
DISTANCE = [{"name": "distance", "dataset": "photos"}]


def files_outside_run(tmp_path):
    return {path for path in tmp_path.parent.rglob("*") if tmp_path / "run" not in [path, *path.parents]}


def test_hostile_file_names_stay_names(tmp_path, experiment, photos, calls, icmbench):
    for path, name in zip(sorted(photos.iterdir()), NAMES):
        path.rename(photos / name)
    path = experiment(codecs=[{"name": "shift", "points": [4]}], tasks=DISTANCE, anchor=None)
    before = files_outside_run(tmp_path)
    first = run(load_experiment(path), tmp_path / "run", RunOptions(keep=True))
    assert not first.missing, first.outcome.failures
    assert len(list((tmp_path / "run" / "store" / "reconstructions").rglob("*.png"))) == 10
    assert files_outside_run(tmp_path) - {tmp_path / "calls.log"} == before
    calls()
    assert not run(load_experiment(path), tmp_path / "run", RunOptions(keep=True)).missing and calls() == {}
    (photos / NAMES[2]).write_bytes(b"no picture")
    failed = icmbench("run", path, "--out", tmp_path / "run")
    assert failed.returncode == 2 and "\\x1b[2J" in failed.stderr  # Refused before anything is coded.
    assert not {"\x1b", "\r", "\x07"} & set(failed.stderr + failed.stdout)


def test_names_that_no_text_can_hold_are_refused(photos, experiment, tmp_path):
    """File names that are no UTF-8 are refused, and in an ASCII locale all names that are no ASCII.

    A terminal with such a locale shows other characters as escapes.
    """
    (photos / "0.png").rename(photos / "\u65e5 \u00fc.png")
    codecs = [{"name": "shift", "label": "\u65e5", "points": [4]}]
    path = experiment(name="\u65e5 \u00fc", codecs=codecs, tasks=DISTANCE, anchor=None)
    # tox sets PYTHONIOENCODING, which overrides the locale; an empty value counts as unset.
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "", "COLUMNS": "200"}
    ascii_only = os.environ | locale
    command = [sys.executable, "-m", "icmbench.harness.cli", "plan", str(path), "--out", str(tmp_path / "run")]
    refused = subprocess.run(command, env=ascii_only, capture_output=True, text=True)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "set LC_ALL=C.UTF-8" in refused.stderr
    (photos / "\u65e5 \u00fc.png").rename(photos / "0.png")
    planned = subprocess.run(command, env=ascii_only, capture_output=True, text=True)
    assert planned.returncode == 0 and "\\u65e5" in planned.stdout, planned.stderr
    (photos / "0.png").rename(photos / "\udcff.png")
    with pytest.raises(DatasetError, match=r"'\\udcff\.png' is no UTF-8; rename the file"):
        list_images(photos)


def test_hostile_labels_stay_labels(tmp_path, experiment, photos):
    path = experiment(
        name=LABEL,
        datasets={LABEL: {"kind": "images", "images": "photos"}},
        codecs=[{"name": "shift", "label": LABEL, "points": [6, 4]}],
        tasks=[{"name": "distance", "dataset": LABEL, "label": LABEL}],
        anchor=LABEL,
    )
    before = files_outside_run(tmp_path)
    result = run(load_experiment(path), tmp_path / "run", source=path)
    assert not result.missing and set(result.scores.codec) == {LABEL}
    assert files_outside_run(tmp_path) - {tmp_path / "calls.log"} == before
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "<img src=x" not in page and "&lt;img src=x" in page


SHIFTS = [{"name": "shift", "label": label, "points": [point]} for label, point in (("\u65e5\u672c", 4), ("\u4e2d\u56fd", 6))]


@pytest.mark.parametrize(
    ("changes", "column", "labels"),
    [
        ({"codecs": SHIFTS}, "codec", {"\u65e5\u672c", "\u4e2d\u56fd"}),
        ({"codecs": [{**SHIFTS[0], "label": "a b"}, {**SHIFTS[1], "label": "a_b"}]}, "codec", {"a b", "a_b"}),
        ({"tasks": [{**DISTANCE[0], "label": "x/y"}, {**DISTANCE[0], "label": "x:y"}]}, "task", {"x/y", "x:y"}),
        ({"codecs": [{**SHIFTS[0], "label": ".uncompressed"}]}, "codec", {".uncompressed"}),
    ],
)
def test_labels_name_no_files_so_that_any_two_are_told_apart(tmp_path, experiment, calls, changes, column, labels):
    path = experiment(**{"codecs": SHIFTS[:1], "tasks": DISTANCE, "anchor": None} | changes)
    first = run(load_experiment(path), tmp_path / "run")
    calls()
    second = run(load_experiment(path), tmp_path / "run")
    assert calls() == {} and not first.missing and {*first.scores[column]} == {*second.scores[column]} == labels


def annotations(tmp_path, file_name, mask="a.png"):
    path = tmp_path / "coco.json"
    row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "file_name": mask, "segments_info": []}
    path.write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": file_name}],
                "annotations": [row],
                "categories": [{"id": 1, "name": "x", "isthing": 1}],
            }
        )
    )
    return path


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "x" * 4096, "a\0.png", "sub/../../secret.png"])
def test_annotations_cannot_name_files_outside_their_folder(tmp_path, name):
    folder = tmp_path / "images"
    folder.mkdir()
    for file in (folder / "a.png", tmp_path / "secret.png"):
        Image.new("RGB", (8, 8)).save(file)
    with pytest.raises(DatasetError, match="are missing, the first is") as error:
        Coco(folder, instances=annotations(tmp_path, name))
    assert len(str(error.value)) < 1000
    if len(name) < 4096:  # No file system has a name as long as that, so it cannot lead out of a folder.
        with pytest.raises(DatasetError, match="not the name of a PNG inside the folder"):
            Coco(folder, panoptic=annotations(tmp_path, "a.png", mask=name), panoptic_masks=folder).targets("panoptic", ["a.png"])


@pytest.mark.parametrize("name", ["../secret.png", "{secret}", "x" * 4096, "a\0.png", "sub/../../secret.png", "\x1b[2J\r\n.png"])
@pytest.mark.parametrize("kind", ["flickr30k", "refcoco", "imagenet"])
def test_lists_cannot_name_files_outside_their_folder(tmp_path, kind, name):
    folder = tmp_path / "images"
    folder.mkdir()
    for file in (folder / "a.png", tmp_path / "secret.png"):
        Image.new("RGB", (8, 8)).save(file)
    name = name.format(secret=tmp_path / "secret.png")
    karpathy = {"images": [{"split": "test", "filename": name, "sentences": [{"raw": "a cat"}]}]}
    refs = [{"file_name": name, "sentence": "the cat", "bbox_xywh": [1, 2, 3, 4]}]
    (tmp_path / "list.json").write_text(json.dumps(karpathy if kind == "flickr30k" else refs))
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "class_index"], [name, 3]])
    with pytest.raises(DatasetError) as error:
        {"flickr30k": Flickr30k, "refcoco": RefCoco, "imagenet": ImageNet}[kind](
            folder, tmp_path / ("list.csv" if kind == "imagenet" else "list.json")
        )
    assert "missing" in str(error.value) and len(str(error.value)) < 1000 and str(error.value).isprintable()


def png_bomb(side):
    """A PNG of a few kilobytes whose header claims side x side pixels."""

    def chunk(tag, data):
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


def test_a_decompression_bomb_is_a_bad_image_among_good_ones(tmp_path, experiment, photos):
    (photos / "4.png").write_bytes(png_bomb(60_000))
    with pytest.raises(DatasetError, match=r"4\.png: .*megapixels"):
        read_image(photos / "4.png")
    path = experiment(codecs=[{"name": "shift", "points": [4]}], tasks=DISTANCE, anchor=None, fail_on_error=1)
    result = run(load_experiment(path), tmp_path / "run")
    assert not result.missing and set(result.scores.failed) == {1}


def test_a_bomb_among_reconstructions_made_elsewhere(tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.png").write_bytes(png_bomb(60_000))
    (tmp_path / "sizes.csv").write_text("image,point,bytes\na.png,p,12\n")
    with pytest.raises(CodecError, match=r"a\.png"):
        Folder("p", path=tmp_path, sizes=tmp_path / "sizes.csv").compress_batch([np.zeros((8, 8, 3), np.uint8)], ["a.png"])


def test_a_bomb_in_place_of_a_kept_picture_is_decoded_anew(tmp_path, experiment):
    path = experiment(codecs=[{"name": "shift", "points": [4]}], tasks=DISTANCE, anchor=None)
    run(load_experiment(path), tmp_path / "run", RunOptions(keep=True, shard=(1, 1)))
    next((tmp_path / "run" / "store" / "reconstructions").rglob("*.png")).write_bytes(png_bomb(60_000))
    tasks = [{**DISTANCE[0], "name": "lift"}]
    path = experiment(codecs=[{"name": "shift", "points": [4]}], tasks=tasks, anchor=None)
    result = run(load_experiment(path), tmp_path / "run", RunOptions(shard=(1, 1)))
    assert not result.outcome.failures and result.outcome.codec_images == 1
