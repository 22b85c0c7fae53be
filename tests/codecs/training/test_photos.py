"""The training set of the small weights: every source has a licence, tags describe the pictures, and the seed decides the set."""

import csv
import json
import subprocess

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from icmbench.codecs.training import photos, synthetic

FREE = {"CC0-1.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "GPL-2", "GPL-2+", "LGPL-3.0"}


def test_every_source_names_a_free_licence_an_author_and_the_package():
    sources = photos.read_sources()
    assert len(sources) > 40
    for source in sources:
        assert source.licence in FREE and source.author and source.package and source.version and source.words, source
        assert source.kind in ("photo", "cut-out")
        assert "foolbox" not in source.package  # The rights in its photographs are not stated.


@pytest.mark.parametrize(
    ("rgb", "tags"),
    [
        ((220, 20, 20), ["red"]),
        ((30, 90, 220), ["blue"]),
        ((250, 250, 250), ["white", "bright"]),
        ((8, 8, 8), ["black", "dark"]),
        ((130, 80, 30), ["brown"]),
    ],
)
def test_colours_are_named(rgb, tags):
    assert photos.colours(np.full((32, 32, 3), rgb, np.uint8)) == tags


def test_the_more_frequent_colour_comes_first():
    image = np.full((64, 64, 3), (20, 160, 30), np.uint8)
    image[:20] = (240, 220, 20)
    assert photos.colours(image) == ["green", "yellow"]


@pytest.mark.parametrize("subject", synthetic.SUBJECTS)
def test_synthetic_pictures_vary_and_follow_the_generator(subject):
    draw = synthetic.SUBJECTS[subject]
    (first, tags), (again, tags_again), (reseeded, _) = (draw(np.random.default_rng(seed), 48) for seed in (3, 3, 4))
    assert first.shape == (48, 48, 3) and first.dtype == np.uint8 and tags == tags_again and tags
    assert np.array_equal(first, again) and not np.array_equal(first, reseeded)
    assert first.std() > 2


def test_salience_marks_what_stands_out():
    image = np.full((96, 96, 3), 40, np.uint8)
    image[30:60, 30:60] = (230, 60, 60)
    mask = np.asarray(photos.salience(image))
    assert mask[40:50, 40:50].min() > 200 and mask[:10, :10].max() < 60


def test_a_training_set_is_collected(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (400, 800, 3), np.uint8)
    Image.fromarray(noise).resize((800, 400)).save(tmp_path / "photo.png")
    cut_out = np.zeros((60, 60, 4), np.uint8)
    cut_out[10:50, 10:50] = (250, 200, 20, 255)
    (tmp_path / "birds").mkdir()
    Image.fromarray(cut_out).save(tmp_path / "birds" / "canary.png")
    rows = [
        ["package", "version", "files", "kind", "author", "licence", "words"],
        ["p", "1", "photo.png", "photo", "A", "CC0-1.0", "sea"],
        ["p", "1", "birds/*.png", "cut-out", "B", "GPL-2", "animal"],
    ]
    with (tmp_path / "sources.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    counts = [photos.collect(tmp_path, tmp_path / out, synthetic_count=12, sources=tmp_path / "sources.csv") for out in "ab"]
    assert counts[0] == counts[1] == 2 + 2 + 12  # Only the photograph reduced to 400 x 200 pixels holds crops of 192, two of them.
    tags = json.loads((tmp_path / "a" / "tags.json").read_text())
    assert set(tags) == {path.name for path in (tmp_path / "a" / "images").iterdir()}
    assert {path.name for path in (tmp_path / "a" / "masks").iterdir()} == set(tags)
    for name in tags:
        assert (tmp_path / "a" / "images" / name).read_bytes() == (tmp_path / "b" / "images" / name).read_bytes()
    with pytest.raises(FileNotFoundError, match="unpack the Debian package p in"):
        photos.collect(tmp_path / "elsewhere", tmp_path / "c", sources=tmp_path / "sources.csv")


@pytest.mark.parametrize("kind", ["photo", "cut-out"])
def test_other_formats_are_never_opened(tmp_path, monkeypatch, kind):
    """Pillow would start Ghostscript for PostScript, whatever the name of the file."""
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    (tmp_path / "evil.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    rows = f"package,version,files,kind,author,licence,words\np,1,evil.png,{kind},A,CC0-1.0,sea\n"
    (tmp_path / "sources.csv").write_text(rows)
    with pytest.raises(UnidentifiedImageError):
        photos.collect(tmp_path, tmp_path / "out", synthetic_count=0, sources=tmp_path / "sources.csv")
