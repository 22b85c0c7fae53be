"""Training crops are reproducible and resumable, and come with their texts and masks."""

import json
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from icmbench.codecs.base import CodecError
from icmbench.codecs.training.data import CropDataset, collate


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    (tmp_path / "masks" / "sub").mkdir(parents=True)
    for k in range(5):
        # Red is the column, green the row, and blue the number of the image.
        pixels = np.stack([*np.meshgrid(np.arange(40), np.arange(30)), np.full((30, 40), k)], -1).astype(np.uint8)
        name = f"{'sub/' if k % 2 else ''}{k}.png"
        Image.fromarray(pixels).save(tmp_path / "photos" / name)
        Image.fromarray(pixels[..., 0]).save(tmp_path / "masks" / name)
    return tmp_path


def test_a_position_always_gives_the_same_crop(photos):
    first, again = (CropDataset(photos / "photos", crop=16, seed=3) for _ in range(2))
    for position in (7, 3, 12):
        assert torch.equal(first[position]["pixels"], again[position]["pixels"])
    reseeded = CropDataset(photos / "photos", crop=16, seed=4)
    assert any(not torch.equal(first[k]["pixels"], reseeded[k]["pixels"]) for k in range(5))


def test_an_epoch_has_each_image_once_in_a_new_order(photos):
    crops = CropDataset(photos / "photos", crop=16)
    epochs = [[int(crops[k]["pixels"][2, 0, 0]) for k in range(start, start + 5)] for start in (0, 5)]
    assert [sorted(epoch) for epoch in epochs] == [[0, 1, 2, 3, 4]] * 2 and epochs[0] != epochs[1]


def test_mask_and_pixels_are_cropped_and_mirrored_alike(photos):
    crops = CropDataset(photos / "photos", crop=16, masks=photos / "masks")
    mirrored = set()
    for position in range(20):
        sample = crops[position]
        assert torch.equal(sample["mask"][0], sample["pixels"][0])
        columns = sample["pixels"][0, 0].int()
        mirrored.add(bool(columns[0] > columns[1]))
        assert (columns.diff().abs() == 1).all() and (sample["pixels"][1, :, 0].int().diff() == 1).all()
    assert mirrored == {True, False}


def test_a_pool_repeats_its_crops(photos):
    crops = CropDataset(photos / "photos", crop=16, pool=7)
    epochs = [{crops[k]["slot"]: crops[k]["pixels"] for k in range(start, start + 7)} for start in (0, 7)]
    assert epochs[0].keys() == epochs[1].keys() == set(range(7))
    assert all(torch.equal(epochs[0][slot], epochs[1][slot]) for slot in range(7))


def test_resize_and_enlarging(photos):
    crops = CropDataset(photos / "photos", crop=32)  # The short side of the photographs is 30.
    assert crops[0]["pixels"].shape == (3, 32, 32)
    shrunk = CropDataset(photos / "photos", crop=8, resize=(10, 10), flip=False)[0]["pixels"]
    assert 2.5 < float(shrunk[0].float().diff(dim=1)[:, 2:-2].mean()) < 3.5  # Three columns became one.


def test_text(photos):
    ids = [f"{'sub/' if k % 2 else ''}{k}.png" for k in range(5)]
    (photos / "captions.json").write_text(json.dumps({image_id: [f"a {image_id}", f"the {image_id}"] for image_id in ids}))
    (photos / "tags.json").write_text(json.dumps({image_id: ["sky", "dog"] if "0" in image_id else [] for image_id in ids}))
    captions = CropDataset(photos / "photos", crop=16, captions=photos / "captions.json")
    texts = collate([captions[k] for k in range(30)])["text"]
    assert set(texts) == {f"{article} {image_id}" for article in ("a", "the") for image_id in ids}
    tags = CropDataset(photos / "photos", crop=16, tags=photos / "tags.json")
    assert sorted(tags[k]["text"] for k in range(5)) == ["", "", "", "", "sky, dog"]
    (photos / "captions.json").write_text(json.dumps({ids[0]: "one"}))
    with pytest.raises(CodecError, match=r"no text for 4 images, such as 2\.png"):
        CropDataset(photos / "photos", crop=16, captions=photos / "captions.json")


def test_an_unreadable_photograph_is_named(photos):
    (photos / "photos" / "0.png").write_bytes(b"no picture")
    with pytest.raises(CodecError, match=r"0\.png cannot be read"):
        [CropDataset(photos / "photos", crop=16)[k] for k in range(5)]
    with pytest.raises(CodecError, match="no photographs"):
        CropDataset(photos / "photos" / "none", crop=16)


def test_only_photographs_are_opened(photos):
    (photos / "photos" / "0.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(CodecError, match=r"0\.png cannot be read as a picture \(cannot identify"):  # Ghostscript is not started.
        [CropDataset(photos / "photos", crop=16)[k] for k in range(5)]
    (photos / "photos" / "0.png").unlink()
    (photos / "photos" / "zero.png").symlink_to("/dev/zero")
    with pytest.raises(CodecError, match=r"zero\.png: a broken link, or no regular file: delete it"):
        CropDataset(photos / "photos", crop=16)


def test_a_turned_photograph_with_an_odd_tag_is_turned(tmp_path):
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHI4s", 0x011A, 1, 1, b"H")
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    pixels = np.arange(16 * 8 * 3, dtype=np.uint8).reshape(16, 8, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    (sample,) = (CropDataset(tmp_path, crop=8, centre=True, flip=False)[0],)
    assert np.array_equal(sample["pixels"].numpy().transpose(1, 2, 0), np.rot90(pixels, 3)[:, 4:12])
