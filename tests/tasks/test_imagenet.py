"""Small generated sets in all of ImageNet's layouts, and the photographs inside packages."""

import numpy as np
import pytest
from PIL import Image as Pillow
from scipy.io import savemat

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.imagenet import ImageNet
from icmbench.tasks.datasets.packaged import PackagedPhotos

WNIDS = [f"n{10_000_000 + 37 * k}" for k in range(1000)]


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.new("RGB", (4, 4)).save(path, "JPEG")


@pytest.fixture
def devkit(tmp_path):
    """The devkit's meta.mat: ILSVRC2012_IDs in another order than the WordNet ids, inner nodes after the 1,000 leaves."""
    order = np.random.default_rng(0).permutation(1000)
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(k + 1, WNIDS[order[k]], "a name", 0) for k in range(1000)] + [(1001, "n00001740", "entity", 3)]
    savemat(tmp_path / "meta.mat", {"synsets": np.array(rows, dtype=kind).reshape(-1, 1)})
    return tmp_path / "meta.mat", order


@pytest.fixture
def mapping(tmp_path):
    path = tmp_path / "LOC_synset_mapping.txt"
    path.write_text("".join(f"{wnid} some, names\n" for wnid in WNIDS))
    return path


def classes(dataset):
    return [target["class_index"] for target in dataset.targets("class", dataset.ids)]


def test_csv_of_labels(shared):
    root = shared / "data" / "imagenet"
    dataset = ImageNet(root / "val", labels=root / "labels.csv")
    assert len(dataset.ids) == 200 and dataset.annotated("class") == dataset.ids
    assert classes(dataset) == list(range(0, 1000, 5))
    assert ImageNet(root / "val", labels=root / "labels.csv", limit=3).ids == dataset.ids[:3]


def test_flat_folder_with_the_devkits_list(tmp_path, devkit):
    meta, order = devkit
    numbers = [17, 1000, 1, 400]
    for k in range(1, 5):
        picture(tmp_path / "val" / f"ILSVRC2012_val_{k:08d}.JPEG")
    truth = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("".join(f"{number}\n" for number in numbers))
    dataset = ImageNet(tmp_path / "val", labels=truth, classes=meta)
    assert classes(dataset) == [order[number - 1] for number in numbers]
    with pytest.raises(DatasetError, match=r"not class indices; give the devkit's meta\.mat"):
        ImageNet(tmp_path / "val", labels=truth)
    (tmp_path / "val" / "ILSVRC2012_val_00000002.JPEG").unlink()  # Labels belong to the number in the name.
    assert classes(ImageNet(tmp_path / "val", labels=truth, classes=meta)) == [order[number - 1] for number in (17, 1, 400)]
    picture(tmp_path / "val" / "other.JPEG")
    with pytest.raises(DatasetError, match=r"other\.JPEG: no line of"):
        ImageNet(tmp_path / "val", labels=truth, classes=meta)


def test_flat_folder_with_a_list_of_files(tmp_path):
    for name in ("a.JPEG", "b.JPEG"):
        picture(tmp_path / "val" / name)
    (tmp_path / "val.txt").write_text("b.JPEG 999\na.JPEG 65\n")
    dataset = ImageNet(tmp_path / "val", labels=tmp_path / "val.txt")
    assert (dataset.ids, classes(dataset)) == (["a.JPEG", "b.JPEG"], [65, 999])


def test_class_folders(tmp_path, mapping, devkit):
    root = tmp_path / "val"
    for k in (999, 4):
        picture(root / WNIDS[k] / f"{k}.JPEG")
    with pytest.raises(DatasetError, match=r"has 2 class folders, and only all 1000.*LOC_synset_mapping"):
        ImageNet(root)
    for names in (mapping, devkit[0]):
        assert classes(ImageNet(root, classes=names)) == [4, 999]
    for wnid in WNIDS:
        picture(root / wnid / "x.jpg")
    whole = ImageNet(root)
    assert whole.ids[0] == f"{WNIDS[0]}/x.jpg"
    assert classes(whole) == sorted([*range(1000), 4, 999])
    picture(root / "stray.jpg")
    with pytest.raises(DatasetError, match=r"stray\.jpg: lies in no class folder.*ILSVRC2012_img_val"):
        ImageNet(root)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "file,label\na.JPEG,1\n", "needs the columns `file` and `class_index`"),
        ("l.csv", "file,class_index\na.JPEG,one\n", "line 2 has no whole number"),
        ("l.csv", "file,class_index\na.JPEG,1000\n", r"class index 1000 of 'a\.JPEG' is not in 0\.\.999"),
        ("l.csv", "file,class_index\na.JPEG,1\nz.JPEG,2\n", r"1 of the 2 images that .* lists are missing, the first is z\.JPEG"),
        ("l.csv", "file,class_index\na.JPEG,1\na.JPEG,2\n", r"'a\.JPEG' has class 1 in line 2, but 2 in line 3; keep one of them"),
        ("l.csv", "file,class_index\na.JPEG,1,5\n", "line 2 has 3 fields under 2 columns; write one field per column"),
        ("l.csv", "file,class_index,\na.JPEG,1,5\n", "line 2 has '5' under a column without a name"),
        ("l.csv", ",file,class_index\nx,a.JPEG,1\n", "line 2 has 'x' under a first column without a name, which may only number"),
        ("l.csv", ",file,class_index\n5,a.JPEG,1\n5,b.JPEG,2\n", "line 3 has '5' under a first column without a name"),
        ("l.csv", "file,class_index,class_index\na.JPEG,1,2\n", "`class_index` stands there twice"),
        ("l.csv", "file,class_index\na.JPEG,1_0\n", "line 2 has no whole number"),
        ("l.csv", "file,class_index\na.JPEG,-1\n", r"class index -1 of 'a\.JPEG' is not in 0\.\.999"),
        ("l.csv", "file,class_index\n,1\n", "line 2 names no file"),
        ("l.csv", 'file,class_index\n"a.JPEG,1\n', "line 2 is no CSV"),
        ("l.txt", "a.JPEG 1\na.JPEG 2\n", r"'a\.JPEG' has class 1 in line 1, but 2 in line 2"),
        ("l.txt", "", "lists no images"),
        ("l.csv", "file,class_index\n", "lists no images"),
        ("l.txt", "a.JPEG one\n", "not a list of labels"),
        ("l.txt", "a.JPEG 1 2\n", "not a list of labels"),
    ],
)
def test_faulty_labels_are_named(tmp_path, name, text, message):
    picture(tmp_path / "val" / "a.JPEG")
    (tmp_path / name).write_text(text)
    with pytest.raises(DatasetError, match=message):
        ImageNet(tmp_path / "val", labels=tmp_path / name)


def test_faulty_class_tables_are_named(tmp_path, mapping):
    picture(tmp_path / "val" / WNIDS[0] / "a.JPEG")
    mapping.write_text("n00000001 one\n")
    with pytest.raises(DatasetError, match=r"holds 1 names, not 1000"):
        ImageNet(tmp_path / "val", classes=mapping)
    (tmp_path / "meta.mat").write_bytes(b"not a table")
    with pytest.raises(DatasetError, match=r"meta\.mat: not the devkit's"):
        ImageNet(tmp_path / "val", classes=tmp_path / "meta.mat")
    with pytest.raises(DatasetError, match=r"none\.csv: no such file\. Download from the ImageNet project"):
        ImageNet(tmp_path / "val", labels=tmp_path / "none.csv")


@pytest.mark.parametrize(
    "text", ["file;class_index\na.JPEG;7\n", "file,class_index,\na.JPEG,7,\na.JPEG,7,\n", ",file,class_index\n0,a.JPEG,7\n"]
)
def test_ways_to_write_the_csv(tmp_path, text):
    picture(tmp_path / "val" / "a.JPEG")
    (tmp_path / "l.csv").write_text(text)
    assert classes(ImageNet(tmp_path / "val", labels=tmp_path / "l.csv")) == [7]


def test_a_class_table_in_another_order_is_refused(tmp_path, mapping):
    picture(tmp_path / "val" / WNIDS[0] / "a.JPEG")
    lines = mapping.read_text().splitlines(keepends=True)
    for wrong in ([lines[1], lines[0], *lines[2:]], [*lines, lines[5]]):
        mapping.write_text("".join(wrong))
        with pytest.raises(DatasetError, match="are not sorted or stand there twice, but their order is the class index"):
            ImageNet(tmp_path / "val", classes=mapping)


def test_a_devkit_list_that_lacks_a_line_is_refused(tmp_path, devkit):
    picture(tmp_path / "val" / "ILSVRC2012_val_00000003.JPEG")
    truth = tmp_path / "truth.txt"
    for lines, message in ((49_999, "has 49999 lines, but the devkit's list has 50000"), (2, "no line of")):
        truth.write_text("7\n" * lines)
        with pytest.raises(DatasetError, match=message):
            ImageNet(tmp_path / "val", labels=truth, classes=devkit[0])
    truth.write_text("1\n\n2\n3\n")  # A blank line would shift the labels after it.
    with pytest.raises(DatasetError, match="not a list of labels"):
        ImageNet(tmp_path / "val", labels=truth, classes=devkit[0])
    truth.write_text("7\n" * 50_000)
    assert classes(ImageNet(tmp_path / "val", labels=truth, classes=devkit[0])) == [devkit[1][6]]


def test_packaged_photographs():
    photos = PackagedPhotos()
    assert len(photos.ids) == 27
    labelled = photos.annotated("class")
    assert len(labelled) == 20 and all(image_id.startswith("foolbox/") for image_id in labelled)
    assert [target["class_index"] for target in photos.targets("class", labelled[:3])] == [243, 559, 438]
    for image_id in photos.ids:
        image = photos.read(image_id)
        assert image.dtype == np.uint8 and image.shape[2] == 3 and np.ptp(image.reshape(-1, 3).astype(int), axis=1).mean() > 4
    with pytest.raises(DatasetError, match="reference: original"):
        photos.targets("class", ["skimage/coffee.png"])
    assert PackagedPhotos(limit=5).ids == photos.ids[:5]
