"""Predictions made elsewhere: bound to pixels, decided by what the files hold of each image, and refused where they do not fit."""

import json
import shutil

import numpy as np
import pytest

from icmbench.tasks.fingerprints import pixel_sha256
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.predictions import Predictions
from icmbench.tasks.models.predictions_manifest import ExportedImage, Manifest, read_manifest

from .prediction_folders import pictures, write_manifest


@pytest.fixture
def folder(tmp_path):
    """A folder with the manifest of three pictures."""
    return write_manifest(tmp_path / "predictions" / "jpeg" / "q=1", pictures())


def write_boxes(folder, *entries):
    whole = [{"category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5} | entry for entry in entries]
    (folder / "boxes.json").write_text(json.dumps(whole))


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    manifest = Manifest({"run": "r", "seed": None}, (ExportedImage("ä.jpg", "ä.png", "0" * 64, "f" * 64, 3, 4, None),))
    (tmp_path / "manifest.json").write_bytes(manifest.to_bytes())
    assert read_manifest(tmp_path / "manifest.json") == manifest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-9], "not JSON .* export the run again"),
        (
            lambda text: text.replace("export-1", "export-2"),
            'its `format` is "icmbench-export-2".* use the icmbench that exported it',
        ),
        (lambda text: "[]", "use the icmbench that exported it"),
        (lambda text: text.replace('"height": 6', '"height": 0', 1), r"images\[0\] .*`height` is 0"),
        (lambda text: text.replace('"pixels": "', '"pixels": "z', 1), r"images\[0\] .*`pixels`.* not SHA-256"),
        (lambda text: text.replace("x.png", "000000000139.png"), "lists the file '000000000139.png' twice"),
        (lambda text: text.replace('"id": "x.png"', '"id": "sub/7.jpg"'), "lists the id 'sub/7.jpg' twice"),
        (lambda text: text.replace('"file": "x.png"', '"file": "../x.png"'), "lists the file '../x.png', which is none below its"),
    ],
)
def test_a_wrong_manifest_is_refused(folder, change, message):
    write_boxes(folder)
    path = folder / "manifest.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(ModelError, match=message):
        Predictions(folder, "boxes")


def test_boxes_are_found_by_the_pixels_that_they_were_made_of(folder):
    write_boxes(
        folder,
        {"image_id": "sub/7.jpg", "category_id": 90, "bbox": [1.5, 2, 0, 4], "score": -1},
        {"image_id": 139},
        {"image_id": 139, "category_id": 3, "bbox": [0, 0, 1, 1], "score": 0.75},
    )
    images = pictures()
    model = Predictions(folder.parent.parent, "boxes")
    empty, second, first = model([images["x.png"], images["sub/7.jpg"], images["000000000139.jpg"]])
    assert first["boxes"].tolist() == [[1, 2, 4, 6], [0, 0, 1, 1]] and first["boxes"].dtype == np.float32
    assert first["scores"].tolist() == [0.5, 0.75] and [model.categories[k] for k in first["classes"]] == ["person", "car"]
    assert second["boxes"].tolist() == [[1.5, 2, 1.5, 6]] and model.categories[second["classes"][0]] == "toothbrush"
    assert empty["boxes"].shape == (0, 4), "the manifest lists the picture, so nothing was detected in it"
    with pytest.raises(ModelError, match=r"none of its 1 manifests lists the pixels [0-9a-f]{12} of this picture of 8x6"):
        model([images["000000000139.jpg"] ^ 1])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"image_id": 140}, r"boxes.json: predictions\[0\] \(image_id 140\): `image_id` is 140, which .*does not list"),
        ({"image_id": "7"}, '`image_id` is "7", which'),
        ({"image_id": 139, "category_id": 12}, "`category_id` is 12, which `categories` of COCO's 80 categories"),
        ({"image_id": 139, "bbox": [1, 2, float("nan"), 4]}, r"`bbox` is \[1, 2, NaN, 4\], not x, y, width and height"),
        ({"image_id": 139, "bbox": [1, 2, -3, 4]}, "`bbox` .* of at least 0"),
        ({"image_id": 139, "bbox": [1, 2, 3]}, "`bbox` is"),
        ({"image_id": 139, "score": float("inf")}, "`score` is Infinity, not a finite number"),
        ({"image_id": 139, "score": "0.5"}, '`score` is "0.5"'),
        ({"image_id": True}, "`image_id` is true"),
    ],
)
def test_wrong_boxes_are_refused_by_file_and_entry(folder, entry, message):
    write_boxes(folder, entry)
    with pytest.raises(ModelError, match=message):
        Predictions(folder, "boxes")(list(pictures().values()))


def test_numbers_of_images_and_categories_are_those_of_the_annotations(folder, tmp_path):
    document = {
        "images": [{"id": 139, "file_name": "x.png"}, {"id": 5, "file_name": "elsewhere.jpg"}],
        "categories": [{"id": 7, "name": "crack"}, {"id": 2, "name": "dent"}],
    }
    (tmp_path / "labels.json").write_text(json.dumps(document))
    write_boxes(folder, {"image_id": 139, "category_id": 7})
    model = Predictions(folder, "boxes", annotations=tmp_path / "labels.json")
    outputs = model(list(pictures().values()))
    assert [len(output["scores"]) for output in outputs] == [0, 0, 1] and model.categories == ["dent", "crack"]
    assert outputs[2]["classes"].tolist() == [1]
    write_boxes(folder, {"image_id": 5, "category_id": 7})
    with pytest.raises(ModelError, match="`image_id` is 5, which"):
        Predictions(folder, "boxes", annotations=tmp_path / "labels.json")(list(pictures().values()))


def test_folders_are_looked_into_once_through_links_too(folder, tmp_path):
    write_boxes(folder, {"image_id": 139})
    (folder / "above").symlink_to(folder.parent.parent)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "jpeg").symlink_to(folder.parent)
    for path in (folder.parent.parent, tmp_path / "elsewhere"):
        assert len(Predictions(path, "boxes")([pictures()["000000000139.jpg"]])[0]["scores"]) == 1


def test_predictions_without_a_manifest_are_refused(folder):
    write_boxes(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(ModelError, match=r"boxes.json: lacks manifest.json beside it, .* copy the one of the pictures"):
        Predictions(folder.parent, "boxes")
    (folder / "boxes.json").unlink()
    with pytest.raises(ModelError, match=r"no folder in it holds a manifest.json"):
        Predictions(folder.parent, "boxes")
    with pytest.raises(ModelError, match="no such folder"):
        Predictions(folder / "absent", "boxes")


# What decides a prediction.


def test_another_codecs_predictions_decide_nothing(folder):
    write_boxes(folder, {"image_id": 139}, {"image_id": "x.png"})
    hashes = [pixel_sha256(image) for image in pictures().values()]
    before = Predictions(folder.parent.parent, "boxes")
    facts = [before.pixel_facts(sha256) for sha256 in hashes]
    other = write_manifest(folder.parent / "q=2", pictures(1))
    after = Predictions(folder.parent.parent, "boxes")
    new = [pixel_sha256(image) for image in pictures(1).values()]
    assert [after.pixel_facts(sha256) for sha256 in new] == [{"prediction": None}] * 3, "not made yet"
    with pytest.raises(ModelError, match=r"q=2/boxes.json: no such file"):
        after(list(pictures(1).values()))
    write_boxes(other, {"image_id": 139})
    after = Predictions(folder.parent.parent, "boxes")
    assert after.fingerprint == before.fingerprint and [after.pixel_facts(sha256) for sha256 in hashes] == facts
    assert all(after.pixel_facts(sha256)["prediction"] for sha256 in new)
    moved = shutil.copytree(folder, folder.parent.parent.parent / "moved")
    assert [Predictions(moved, "boxes").pixel_facts(sha256) for sha256 in hashes] == facts, "the path decides nothing"


def test_only_the_image_whose_prediction_changes_has_other_facts(folder):
    write_boxes(folder, {"image_id": 139}, {"image_id": "x.png"})
    hashes = [pixel_sha256(image) for image in pictures().values()]
    model = Predictions(folder, "boxes")
    before = [model.pixel_facts(sha256) for sha256 in hashes]
    write_boxes(folder, {"image_id": "x.png"}, {"image_id": 139, "score": 0.25})
    model = Predictions(folder, "boxes")
    assert [model.pixel_facts(sha256) == fact for sha256, fact in zip(hashes, before, strict=True)] == [False, True, True]


def test_a_file_that_changes_during_a_run_is_noticed(folder):
    write_boxes(folder, {"image_id": 139})
    model, image = Predictions(folder, "boxes"), pictures()["000000000139.jpg"]
    assert len(model([image])[0]["scores"]) == 1
    write_boxes(folder, {"image_id": 139}, {"image_id": 139})
    model._sets.clear()  # As where predictions of other codec points were read in between.
    with pytest.raises(ModelError, match=r"the prediction of '000000000139.jpg' changed during this run"):
        model([image])


def test_two_predictions_for_equal_pixels_are_refused(folder):
    write_boxes(folder, {"image_id": 139})
    originals = write_manifest(folder.parent.parent / "uncompressed", pictures())
    image = pictures()["000000000139.jpg"]
    assert Predictions(folder.parent.parent, "boxes")([image])[0]["scores"].tolist() == [0.5], "that of the originals is missing"
    write_boxes(originals, {"image_id": 139})
    assert Predictions(folder.parent.parent, "boxes")([image])[0]["scores"].tolist() == [0.5], "both are the same"
    write_boxes(originals, {"image_id": 139, "score": 0.25})
    with pytest.raises(
        ModelError, match=r"different predictions for the same pixels, those of '000000000139.jpg': remove the folder"
    ):
        Predictions(folder.parent.parent, "boxes")([image])


def test_the_fingerprint_holds_how_files_are_read(folder, tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    (tmp_path / "other.txt").write_text("dog\ncat\n")
    made = [
        Predictions(folder, "boxes"),
        Predictions(folder, "masks"),
        Predictions(folder, "boxes", names=tmp_path / "names.txt"),
        Predictions(folder, "boxes", names=tmp_path / "other.txt"),
        Predictions(folder, "boxes", names=tmp_path / "names.txt", first=1),
        Predictions(folder, "classes"),
        Predictions(folder, "classes", classes=10),
        Predictions(folder, "classes", ranks=1),
        Predictions(folder, "answers", box_convention="absolute"),
        Predictions(folder, "answers", box_convention="norm1000"),
    ]
    assert len({model.fingerprint for model in made}) == len(made)


# Options.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "labels"}, "what do its numbers mean"),
        ({"format": "panoptic", "names": "names.txt"}, "categories. have .isthing"),
        ({"format": "classes", "classes": 3}, "3 classes cannot fill 5 ranks"),
        ({"format": "boxes", "file": "../boxes.json"}, "no path below the folder"),
        ({"format": "boxes", "names": "names.txt", "annotations": "categories.json"}, "give one of the two"),
        ({"format": "boxes", "names": "twice.txt"}, "line 2 is 'cat' again"),
        ({"format": "boxes", "annotations": "names.txt"}, "not JSON .* give a JSON in COCO's format"),
    ],
)
def test_wrong_options_are_refused(folder, tmp_path, options, message):
    (tmp_path / "categories.json").write_text(json.dumps({"categories": [{"id": 4, "name": "cat"}]}))
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    (tmp_path / "twice.txt").write_text("cat\ncat\n")
    options = {key: tmp_path / value if key in ("names", "annotations") else value for key, value in options.items()}
    with pytest.raises(ModelError, match=message):
        Predictions(folder, **options)
