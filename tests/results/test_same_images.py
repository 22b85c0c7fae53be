"""Rows that would share a curve or a table are refused if they were scored on different images."""

import pandas as pd
import pytest

from icmbench.harness.cli import main
from icmbench.results.scores import ScoresError, normalise, read_scores

COLUMNS = ["codec", "point", "dataset", "task", "metric", "value", "unit", "realisation", "bpp", "expected", "scored", "images"]
ROWS = [
    ("uncompressed", "-", "coco", "yolox", "AP", 40.0, "%", "", None, 4, 4, "aa"),
    *(("jpeg", f"q{k}", "coco", "yolox", "AP", 10.0 + k, "%", "", 0.1 * k, 4, 4, "aa") for k in range(1, 5)),
    *(("avif", f"q{k}", "coco", "yolox", "AP", 20.0 + k, "%", "", 0.1 * k, 4, 4, "aa") for k in range(1, 5)),
]
AVIF = 5  # Row of the first point of avif.


@pytest.fixture
def frame():
    return pd.DataFrame(ROWS, columns=COLUMNS)


@pytest.fixture
def said(tmp_path, capfd):
    """A function: what reading a frame as a file, taking it from memory, and `icmbench bdrate` say against it, or ""."""

    def call(frame):
        path = tmp_path / "scores.csv"
        frame.to_csv(path, index=False)
        messages = []
        for read in (lambda: read_scores(path), lambda: normalise(frame)):
            try:
                read()
                messages.append("")
            except ScoresError as error:
                messages.append(str(error).removeprefix(f"{path}: "))
        code = main(["bdrate", str(path), "--anchor", "jpeg"])
        output = capfd.readouterr()
        assert code == (2 if output.err else 0) and ("avif" in output.out) == (code == 0)
        messages.append(output.err.strip().removeprefix(f"icmbench: {path}: "))
        assert len({*messages}) == 1, messages
        return messages[0]

    return call


@pytest.mark.parametrize("columns", [[], ["images"], ["scored"], ["expected", "scored", "images"]])
def test_the_same_images_and_files_that_do_not_state_them_pass(frame, said, columns):
    assert said(frame.drop(columns=columns)) == ""


@pytest.mark.parametrize("row", [0, AVIF, AVIF + 3])
def test_other_images(frame, said, row):
    """As many, but others: of the ceiling, of a codec, and of a single point. The first row is what the others are held against."""
    frame.loc[row, "images"] = "bb"
    other, first = ("jpeg", "q1"), ("uncompressed", "-")
    if row:
        other = (frame["codec"][row], frame["point"][row])
    assert said(frame) == (
        f"codec {other[0]!r} at point {other[1]!r} was scored on other images than {first[0]!r} at point {first[1]!r} "
        "('AP' of dataset 'coco'): 4 images and 4 images; score all codecs on the same images, or put them into two files"
    )


@pytest.mark.parametrize("columns", [[], ["images"]])
def test_another_number_of_images(frame, said, columns):
    """Whether or not the file says which images they were."""
    frame.loc[AVIF + 1, "scored"] = 3
    assert said(frame.drop(columns=columns)) == (
        "codec 'avif' at point 'q2' was scored on another number of images than 'uncompressed' at point '-' "
        "('AP' of dataset 'coco'): 3 images and 4 images; score all codecs on the same images, or put them into two files"
    )


def test_an_unknown_number_of_other_images(frame, said):
    frame.loc[AVIF:, "images"] = "bb"
    frame.loc[AVIF:, "scored"] = None
    assert "codec 'avif' at point 'q1' was scored on other images" in said(frame)
    assert "an unknown number and 4 images" in said(frame)


def test_rows_that_state_nothing_stand_beside_those_that_do(frame, said):
    """As curves of papers beside a run's."""
    frame.loc[AVIF:, "images"] = ""
    frame.loc[AVIF:, "scored"] = None
    assert said(frame) == ""
    frame.loc[AVIF + 1, "images"] = "bb"
    assert "codec 'avif' at point 'q2' was scored on other images" in said(frame)


@pytest.mark.parametrize("column", ["dataset", "task", "metric"])
def test_rows_that_share_no_curve_may_have_other_images(frame, said, column):
    """Another dataset, a task that scores a part of the images, a metric that some images do not have."""
    other = frame.assign(**{column: f"other {column}"}, images="bb", scored=3)
    assert said(pd.concat([frame, other], ignore_index=True)) == ""


def test_realisations_of_other_images(frame, said):
    """Seeds are averaged, so they need the same images as well."""
    seeds = [frame.assign(realisation=f"seed={seed}") for seed in (1, 2)]
    seeds[1]["images"] = "bb"
    assert "was scored on other images" in said(pd.concat(seeds, ignore_index=True))
