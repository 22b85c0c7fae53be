"""Tables of Open Images with one place damaged: each is refused, or read as a plain reader reads it."""

import base64
import csv
import io
import os
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.mask import decode

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.openimages import OpenImages

from .damage import damaged_text
from .openimages_files import HEIGHT, IDS, WIDTH, open_tables, rectangle

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools' decode warns under numpy 2.
thoroughly = settings(
    max_examples=3000 if os.environ.get("ICMBENCH_FUZZ") else 150,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
MASKS = [(0, rectangle(0, 0, 40, 40)), (2, rectangle(10, 10, 60, 30))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    open_tables(folder, masks=MASKS)
    return folder


@pytest.fixture(scope="module")
def texts(folder):
    return {name: (folder / f"{name}.csv").read_text() for name in ("boxes", "labels", "masks")}


def plain_rows(text):
    """The rows of the dataset's images, as Python's own reader gives them."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    separator = max(",;\t", key=text.partition("\n")[0].count)
    rows = csv.DictReader(io.StringIO(text), delimiter=separator, skipinitialspace=True)
    stripped = [{key.strip(): (value or "").strip() for key, value in row.items() if key} for row in rows]
    return [row for row in stripped if row["ImageID"] in IDS]


def read(folder, texts, name, text):
    """Labels of all images with one table replaced; None if it is refused in a sentence that names the file."""
    for other, sound in texts.items():
        (folder / f"{other}.csv").write_text(text if other == name else sound)
    try:
        tables = [folder / f"{each}.csv" for each in ("boxes", "labels", "masks")]
        dataset = OpenImages(folder / "photographs", tables[0], tables[1], masks=tables[2])
        dataset.annotated("instances")
        return dataset, dataset.targets("instances", dataset.ids)
    except DatasetError as error:
        assert str(folder) in str(error) and "\n" not in str(error), error
        return None


@thoroughly
@given(data=st.data())
def test_damaged_boxes(folder, texts, data):
    text = data.draw(damaged_text(texts["boxes"]))
    if (result := read(folder, texts, "boxes", text)) is None:
        return
    dataset, targets = result
    names = dataset.categories("instances")
    ours = [
        (image_id, names[category], *corners, bool(group))
        for image_id, target in zip(IDS, targets, strict=True)
        for category, corners, group in zip(target["classes"], target["corners"].tolist(), target["group"], strict=True)
    ]
    edges = ("XMin", "YMin", "XMax", "YMax")
    rows = plain_rows(text)
    plain = [
        (row["ImageID"], row["LabelName"], *(float(row[edge]) for edge in edges), float(row["IsGroupOf"]) == 1) for row in rows
    ]
    assert sorted(ours) == sorted(plain)


@thoroughly
@given(data=st.data())
def test_damaged_image_level_labels(folder, texts, data):
    text = data.draw(damaged_text(texts["labels"]))
    if (result := read(folder, texts, "labels", text)) is None:
        return
    dataset, targets = result
    names = dataset.categories("instances")
    ours = {(image_id, names[k]) for image_id, target in zip(IDS, targets, strict=True) for k in target["verified"]}
    plain = {(row["ImageID"], row["LabelName"]) for table in (text, texts["boxes"]) for row in plain_rows(table)}
    assert ours == plain


@thoroughly
@given(data=st.data())
def test_damaged_masks(folder, texts, data):
    text = data.draw(damaged_text(texts["masks"]))
    if (result := read(folder, texts, "masks", text)) is None:
        return
    _, targets = result
    masks = [mask.run_lengths((HEIGHT, WIDTH)) for target in targets for mask in target["masks"] if mask is not None]
    ours = sorted(decode(mask).tobytes() for mask in masks if mask is not None)
    plain = [zlib.decompress(base64.b64decode(row["Mask"])) for row in plain_rows(text) if row["Mask"] not in ("", "nan")]
    decoded = [np.asarray(decode({"size": [HEIGHT, WIDTH], "counts": counts})) for counts in plain]
    assert ours == sorted(pixels.tobytes() for pixels in decoded if pixels.any())
