"""The `folder` codec: how it finds files and rows, and every way in which a folder or a CSV can be wrong."""

import hashlib
import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from icmbench.codecs.base import BitstreamError, CodecError, compress_all, decompress_all
from icmbench.codecs.classical import Jpeg
from icmbench.codecs.folder import Folder

IDS = ["000000000139.jpg", "n01440764/x.JPEG", "n01443537/x.JPEG"]


def picture(seed: int, height: int = 12, width: int = 17) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def save(path, image: np.ndarray, **settings) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(image).save(path, **settings)


@pytest.fixture
def files(tmp_path):
    """Two points of three images each. Returns the folder, its CSV and the reconstructions of point 32."""
    images = [picture(seed) for seed in range(3)]
    rows = ["image,point,bytes"]
    for point in [32, 37]:
        for number, (image_id, image) in enumerate(zip(IDS, images, strict=True)):
            reconstruction = image if point == 32 else 255 - image
            save(tmp_path / str(point) / f"{image_id.rpartition('.')[0]}.png", reconstruction)
            rows.append(f"{image_id},{point},{100 * point - number}")
    (tmp_path / "sizes.csv").write_text("\n".join(rows) + "\n")
    return tmp_path, tmp_path / "sizes.csv", images


@pytest.fixture
def codec(files):
    return Folder(32, path=files[0], sizes=files[1])


def forge(**fields) -> bytes:
    """A token with these fields and a right checksum."""
    body = json.dumps(fields).encode()
    return b"%08x" % zlib.crc32(body) + body


def test_reconstructions_and_sizes_come_back(files, codec):
    path, sizes, images = files
    streams = compress_all(codec, images, IDS)
    assert all(np.array_equal(a, b) for a, b in zip(decompress_all(codec, streams), images, strict=True))
    assert [codec.stream_bytes(stream) for stream in streams] == [3200, 3199, 3198]
    assert codec.compress_batch(images[::-1], IDS[::-1]) == streams[::-1]
    other = Folder(37, path=path, sizes=sizes)
    assert np.array_equal(other.decompress(other.compress_batch(images[:1], IDS[:1])[0]), 255 - images[0])
    assert (codec.point.label, codec.point.parameters) == ("32", {"point": 32})
    assert codec.point.order == 3199 < other.point.order  # Points are sorted by their mean bytes, whatever the label means.


def test_photographs_made_by_another_codec(shared, tmp_path):
    ids = ["kodim02.png", "kodim03.png"]
    originals = [np.array(Pillow.open(shared / "data/kodak" / name).convert("RGB")) for name in ids]
    codec = Jpeg(10)
    streams = [codec.compress(image) for image in originals]
    for name, stream in zip(ids, streams, strict=True):
        save(tmp_path / "q=10" / name, codec.decompress(stream))
    rows = [f"{name},q=10,{len(stream)}" for name, stream in zip(ids, streams, strict=True)]
    (tmp_path / "sizes.csv").write_text("\n".join(["image,point,bytes", *rows]))
    folder = Folder({"q": 10}, path=tmp_path, sizes=tmp_path / "sizes.csv")
    tokens = folder.compress_batch(originals, ids)
    assert [folder.stream_bytes(token) for token in tokens] == [len(stream) for stream in streams]
    for token, stream in zip(tokens, streams, strict=True):
        assert np.array_equal(folder.decompress(token), codec.decompress(stream))


@pytest.mark.parametrize(
    "file",
    ["x.png", "x.jpg.png", "x.PNG", "x.ppm", "x.bmp", "x.webp", "x.tif", "x.tiff"],
)
@pytest.mark.parametrize("row", ["x.jpg", "x", "x.png"])
def test_files_and_rows_match_by_full_id_then_stem(tmp_path, file, row):
    image = picture(1)
    save(tmp_path / "low" / file, image, **({"lossless": True} if file.endswith("webp") else {}))
    (tmp_path / "sizes.csv").write_text(f"image,point,bytes\n{row},low,7\n")
    codec = Folder("low", path=tmp_path, sizes=tmp_path / "sizes.csv")
    (token,) = codec.compress_batch([image], ["x.jpg"])
    assert np.array_equal(codec.decompress(token), image)
    assert codec.stream_bytes(token) == 7


def test_an_exact_name_goes_before_a_stem(tmp_path):
    save(tmp_path / "1/a.b.png", picture(1))
    save(tmp_path / "1/a.png", picture(2))
    (tmp_path / "sizes.csv").write_text("image,point,bytes\na.b.png,1,11\na.png,1,12\n")
    codec = Folder(1, path=tmp_path, sizes=tmp_path / "sizes.csv")
    tokens = codec.compress_batch([picture(1), picture(2)], ["a.b.png", "a.png"])
    assert [codec.stream_bytes(token) for token in tokens] == [11, 12]
    assert all(np.array_equal(codec.decompress(token), picture(seed)) for token, seed in zip(tokens, [1, 2], strict=True))


@pytest.mark.parametrize("mode", ["L", "P"])
def test_grey_and_palette_files_are_exact(tmp_path, mode):
    grey = np.repeat(picture(1)[:, :, :1], 3, axis=2)
    (tmp_path / "1").mkdir()
    Pillow.fromarray(grey).convert("L").convert(mode).save(tmp_path / "1/a.png")
    (tmp_path / "sizes.csv").write_text("image,point,bytes\na,1,9\n")
    codec = Folder(1, path=tmp_path, sizes=tmp_path / "sizes.csv")
    assert np.array_equal(codec.decompress(codec.compress_batch([grey], ["a.jpg"])[0]), grey)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("image,point,bits\nx.jpg,32,80\n", 10),
        ("image,point,bits\nx.jpg,32,81\n", 11),
        ("\ufeffpoint, image, bytes, seconds\r\n32.0, x.jpg, 12, 3.5\r\n", 12),
        ('image,point,bytes\n"x.jpg","32","13"\n\n', 13),
        ("image,point,bytes\nx.jpg,37,1\nx.jpg,32,1e3\n", 1000),
        ("image;point;bytes;\nx.jpg;32;14.0;\n", 14),
        (",image,point,bytes\n0,x.jpg,32,15\n", 15),
    ],
    ids=["bits", "bits rounded up", "order, blanks, mark", "quotes", "two points", "semicolons at all ends", "numbered rows"],
)
def test_ways_to_write_the_csv(tmp_path, text, size):
    save(tmp_path / "32/x.png", picture(1))
    (tmp_path / "sizes.csv").write_text(text, encoding="utf-8", newline="")
    codec = Folder(32, path=tmp_path, sizes=tmp_path / "sizes.csv")
    assert codec.stream_bytes(codec.compress_batch([picture(1)], ["x.jpg"])[0]) == size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,point,bytes\na,32,5\nb,32,5\na,32,6\n", r"sizes\.csv, row 4: image 'a' at point '32' stands in row 2"),
        ("image,point,bytes\na,32,5\na,32.0,5\n", "row 3: image 'a'"),
        ("image,point,bytes\na,32,0\n", "row 2: bytes is a whole number above 0, not '0'"),
        ("image,point,bytes\na,32,5\nb,37,-1\n", "row 3: bytes is a whole number above 0, not '-1'"),
        ("image,point,bits\na,32,4.5\n", "row 2: bits is a whole number above 0, not '4.5'"),
        ("image,point,bytes\na,32,\n", "row 2: bytes .* not ''"),
        ("image,point,bytes\na,32\n", "row 2: 2 fields under 3 named columns: write one field per column"),
        ("image,point,bytes\na,32,1,024\n", "row 2: 4 fields under 3 named columns.*without thousands separators"),
        ("image,point,bytes,\na,32,1,024\n", "row 2: 4 fields under 3 named columns"),
        ("image;point;bytes\na;32;1.024\n", "row 2: bytes is a whole number above 0, not '1.024'"),
        ("image;point;bytes\na;32;1.000\n", "row 2: bytes is a whole number above 0, not '1.000'"),
        ("image,point,bytes\na,32,1_000\n", "row 2: bytes is a whole number above 0, not '1_000'"),
        ("image,point,bytes\na,32,1e30\n", "row 2: bytes is at most 1099511627776, not '1e30'"),
        ("image,point,bytes,bytes\na,32,5,6\n", "each of them once; it has image, point, bytes, bytes"),
        ("image,point,bytes\na,32,inf\n", "row 2: bytes .* not 'inf'"),
        ("image,point,bytes\na,32,many\n", "row 2: bytes .* not 'many'"),
        ("image,point,bytes\n,32,5\n", "row 2: its image or its point is empty"),
        ("image,point\na,32\n", "needs the columns image, point and either bytes or bits, .*; it has image, point$"),
        ("image,point,bytes,bits\na,32,5,40\n", "either bytes or bits"),
        ("", "needs the columns"),
        ("image,point,bytes\n", "no row of point '32'; it has no rows at all"),
        ("image,point,bytes\na,22,5\na,q7,6\n", "no row of point '32'; it has 22, q7"),
    ],
    ids=range(22),
)
def test_a_wrong_csv_is_refused_by_row(files, text, message):
    files[1].write_text(text)
    with pytest.raises(CodecError, match=message):
        Folder(32, path=files[0], sizes=files[1])


def test_a_csv_that_cannot_be_read(files):
    files[1].write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(CodecError, match=r"sizes\.csv cannot be read"):
        Folder(32, path=files[0], sizes=files[1])
    with pytest.raises(CodecError, match=r"missing\.csv cannot be read"):
        Folder(32, path=files[0], sizes=files[0] / "missing.csv")


def test_a_missing_folder_names_those_that_are_there(files):
    with pytest.raises(CodecError, match=r"no folder .*42 .* there are: 32, 37"):
        Folder(42, path=files[0], sizes=files[1])
    (files[0] / "42").mkdir()
    with pytest.raises(CodecError, match=r"holds no \.png"):
        Folder(42, path=files[0], sizes=files[1])


@pytest.mark.parametrize("point", ["..", ".", "", "a/b", "/etc", "..\\x", True], ids=str)
def test_a_point_is_the_name_of_a_folder(files, point):
    with pytest.raises(CodecError, match="a point names a folder"):
        Folder(point, path=files[0], sizes=files[1])


def test_a_missing_file_or_row_is_named_with_its_remedy(files, codec):
    with pytest.raises(CodecError, match=r"no reconstruction of 'new/a\.jpg' at point '32': put it at .*32/new/a\.png"):
        codec.compress_batch([picture(0)], ["new/a.jpg"])
    save(files[0] / "32/new/a.png", picture(0))
    with pytest.raises(CodecError, match=r"sizes\.csv has no row of image 'new/a\.jpg' at point '32': add its size"):
        Folder(32, path=files[0], sizes=files[1]).compress_batch([picture(0)], ["new/a.jpg"])
    with pytest.raises(CodecError, match=r"no reconstruction of 'x\.JPEG'"):  # The class folder is part of the id.
        codec.compress_batch([picture(0)], ["x.JPEG"])


def test_two_files_or_rows_for_one_image(files):
    path, sizes, images = files
    save(path / "32/000000000139.bmp", images[0])
    with pytest.raises(CodecError, match=r"000000000139\.bmp and 000000000139\.png .* both fit"):
        Folder(32, path=path, sizes=sizes).compress_batch(images[:1], IDS[:1])
    (path / "32/000000000139.bmp").unlink()
    sizes.write_text("image,point,bytes\n000000000139.png,32,5\n000000000139.bmp,32,6\n")
    with pytest.raises(CodecError, match=r"rows 2 and 3 .* both fit '000000000139\.jpg'"):
        Folder(32, path=path, sizes=sizes).compress_batch(images[:1], IDS[:1])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("a.webp", {"quality": 90}, "compressed with loss"),
        ("a.webp", {"quality": 90, "icc_profile": b"x" * 33}, "compressed with loss"),
        ("a.tif", {"compression": "jpeg"}, "compressed with loss"),
        ("a.png", {"format": "JPEG"}, "cannot identify"),
    ],
    ids=["webp", "extended webp", "tiff", "jpeg named png"],
)
def test_reconstructions_kept_with_loss_are_refused(tmp_path, name, settings, message):
    save(tmp_path / "1" / name, picture(1), **settings)
    (tmp_path / "sizes.csv").write_text("image,point,bytes\na,1,9\n")
    with pytest.raises(CodecError, match=message):
        Folder(1, path=tmp_path, sizes=tmp_path / "sizes.csv").compress_batch([picture(1)], ["a.jpg"])


def test_a_reconstruction_of_another_kind_is_refused(tmp_path):
    save(tmp_path / "1/a.png", np.zeros((4, 4, 4), np.uint8))
    save(tmp_path / "1/b.png", picture(1))
    (tmp_path / "sizes.csv").write_text("image,point,bytes\na,1,9\nb,1,9\n")
    codec = Folder(1, path=tmp_path, sizes=tmp_path / "sizes.csv")
    with pytest.raises(CodecError, match="pixels are RGBA"):
        codec.compress_batch([np.zeros((4, 4, 3), np.uint8)], ["a.jpg"])
    with pytest.raises(CodecError, match=r"b\.png is 17x12, but the image 'b\.jpg' is coded at 20x10"):
        codec.compress_batch([picture(1, 10, 20)], ["b.jpg"])


def test_an_image_without_an_id_is_refused(codec):
    with pytest.raises(CodecError, match="by their ids"):
        codec.compress(picture(0))


def test_every_altered_token_is_a_bitstream_error(files, codec):
    (token,) = codec.compress_batch(files[2][:1], IDS[:1])
    altered = [token[:length] for length in range(len(token))]
    altered += [token + b"\0", token + token, b"\0" * 100, Jpeg(10).compress(files[2][0])]
    altered += [token[:k] + bytes([token[k] ^ 1 << bit]) + token[k + 1 :] for k in range(len(token)) for bit in range(8)]
    for data in altered:
        with pytest.raises(BitstreamError):
            codec.decompress(data)
        with pytest.raises(BitstreamError):
            codec.stream_bytes(data)


@pytest.mark.parametrize(
    "fields",
    [
        {"file": "32/../37/000000000139.png", "bytes": 5},
        {"file": "32/../../secret.png", "bytes": 5},
        {"file": "/secret.png", "bytes": 5},
        {"file": "32//secret.png", "bytes": 5},
        {"file": "37/000000000139.png", "bytes": 5},
        {"file": "32/missing.png", "bytes": 5},
        {"file": "32/000000000139.png", "bytes": 0},
        {"file": "32/000000000139.png", "bytes": float("inf")},
        {"file": "32/000000000139.png"},
        {"file": 5, "bytes": 5},
        {"bytes": 5},
    ],
    ids=str,
)
def test_no_forged_token_leads_elsewhere(files, codec, fields):
    save(files[0].parent / "secret.png", picture(9))
    with pytest.raises(BitstreamError):
        codec.decompress(forge(**fields))


def test_a_forged_token_of_no_object(codec):
    for body in [b"[]", b"null", b"[" * 100_000, b"\xff"]:
        with pytest.raises(BitstreamError):
            codec.decompress(b"%08x" % zlib.crc32(body) + body)


def test_a_damaged_or_deleted_reconstruction_is_a_bitstream_error(files, codec):
    path, _, images = files
    first, second, _ = codec.compress_batch(images, IDS)
    file = path / "32/000000000139.png"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(BitstreamError, match=r"000000000139\.png cannot be read"):
        codec.decompress(first)
    (path / "32/n01440764/x.png").unlink()
    with pytest.raises(BitstreamError, match=r"x\.png cannot be read"):
        codec.decompress(second)


def facts_of(path, sizes, point=32) -> dict:
    codec = Folder(point, path=path, sizes=sizes)
    return {image_id: codec.facts(image_id) for image_id in IDS}


def test_facts_hold_one_images_file_and_row(files):
    path, sizes, _ = files
    file = path / "32/000000000139.png"
    facts = facts_of(path, sizes)
    assert facts[IDS[0]] == {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "bytes": 3200}
    assert json.loads(json.dumps(facts)) == facts and len(set(map(str, facts.values()))) == 3
    os.utime(file, ns=(1, 1))
    assert facts_of(path, sizes) == facts  # Content decides, not the time at which a file was copied.
    other_point = facts_of(path, sizes, 37)
    for change in (
        lambda: save(file, picture(8)),
        lambda: sizes.write_text(sizes.read_text().replace(f"{IDS[0]},32,3200", f"{IDS[0]},32,3201")),
    ):
        before = facts_of(path, sizes)
        change()
        after = facts_of(path, sizes)
        assert [image_id for image_id in IDS if after[image_id] != before[image_id]] == IDS[:1]
    assert facts_of(path, sizes, 37) == other_point


def test_another_image_changes_neither_fingerprint_nor_facts(files):
    path, sizes, _ = files
    fingerprint, facts = Folder(32, path=path, sizes=sizes).fingerprint, facts_of(path, sizes)
    assert fingerprint != Folder(37, path=path, sizes=sizes).fingerprint
    rows = sizes.read_text()
    save(path / "32/more.png", picture(9))
    sizes.write_text(rows + "more.jpg,32,7\n")
    assert Folder(32, path=path, sizes=sizes).fingerprint == fingerprint and facts_of(path, sizes) == facts
    (path / "32/more.png").rename(path / "32/renamed.png")
    sizes.write_text(rows + "renamed.jpg,32,7\n")
    assert Folder(32, path=path, sizes=sizes).fingerprint == fingerprint and facts_of(path, sizes) == facts
    (path / "32/renamed.png").unlink()
    (path / "32/n01443537/x.png").unlink()
    sizes.write_text(rows.replace(f"{IDS[2]},32,3198\n", ""))
    left = Folder(32, path=path, sizes=sizes)
    assert left.fingerprint == fingerprint and [left.facts(image_id) for image_id in IDS[:2]] == list(facts.values())[:2]


def test_facts_of_what_is_missing_or_ambiguous_raise_nothing(files):
    path, sizes, images = files
    complete = facts_of(path, sizes)[IDS[0]]
    codec = Folder(32, path=path, sizes=sizes)
    assert codec.facts("unknown.png") == {"file": None, "sha256": None, "bytes": None}
    (path / "32/000000000139.png").rename(path / "32/000000000139.bmp")
    vanished = codec.facts(IDS[0])
    save(path / "32/000000000139.webp", images[0], lossless=True)
    ambiguous = Folder(32, path=path, sizes=sizes)
    with pytest.raises(CodecError, match="both fit"):
        ambiguous.compress_batch(images[:1], IDS[:1])
    assert len(set(map(str, [complete, vanished, ambiguous.facts(IDS[0])]))) == 3


def test_a_file_is_read_once_for_facts(files, monkeypatch):
    path, sizes, _ = files
    codec, read = Folder(32, path=path, sizes=sizes), []
    open_file = Path.open
    monkeypatch.setattr(Path, "open", lambda file, *mode: read.append(file) or open_file(file, *mode))
    for _ in range(3):
        codec.facts(IDS[0])
    assert len(read) == 1


PIECES = [
    ",",
    ";",
    "\n",
    '"',
    "1",
    "-",
    ".",
    " ",
    "\t",
    "nan",
    "null",
    "e1",
    "_",
    "٣",
    "\ufeff",
    ",,",
    "1,024",
    "a.jpg,32,7\n",
    "a.jpg,32,8\n",
]


def read_plainly(text: str) -> dict[str, int] | None:
    """Sizes of point 32 as a strict reader of plain code has them; None if the text means nothing."""
    rows = [line.replace('"', "").replace("\ufeff", "") for line in text.split("\n")]
    table = [[field.strip() for field in row.split(",")] for row in rows if row.strip()]
    if not table or sorted(filter(None, table[0])) != ["bytes", "image", "point"]:
        return None
    sizes = {}
    for row in table[1:]:
        if len(row) != len(table[0]):
            return None
        fields = dict(zip(table[0], row, strict=True))
        image, point, size = (fields[name] for name in ("image", "point", "bytes"))
        if not image or not size.isascii() or not (size.isdigit() or "e" in size or size.endswith(".0")) or (image, point) in sizes:
            return None
        sizes[image, point] = int(float(size))
    return {image: size for (image, point), size in sizes.items() if point == "32"}


@settings(
    max_examples=3000 if os.environ.get("ICMBENCH_FUZZ") else 300,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_a_damaged_csv_is_refused_or_means_what_it_says(tmp_path_factory, data):
    text = "image,point,bytes\na.jpg,32,7\nb.jpg,32,512\na.jpg,37,3\n"
    start, length = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 6))
    piece = data.draw(st.sampled_from(["", *PIECES]))
    text = text[:start] + piece + (text[start + length :] if data.draw(st.integers(0, 6)) else "")
    folder = tmp_path_factory.getbasetemp() / "csv"
    for name in ("32/a.png", "32/b.png"):
        if not (folder / name).exists():
            save(folder / name, picture(1))
    (folder / "sizes.csv").write_text(text, encoding="utf-8")
    try:
        codec = Folder(32, path=folder, sizes=folder / "sizes.csv")
        tokens = {name: codec.compress_batch([picture(1)], [name])[0] for name in ("a.jpg", "b.jpg")}
    except CodecError as error:
        assert "\n" not in str(error) and "sizes.csv" in str(error)
        return
    sizes = {name: codec.stream_bytes(token) for name, token in tokens.items()}
    expected = read_plainly(text)
    assert expected is not None
    for name, size in sizes.items():  # A row may name an image by its stem.
        assert size == next(value for key, value in expected.items() if key.partition(".")[0] == name.partition(".")[0])


@pytest.mark.skipif(os.name == "nt", reason="has no devices among files")
def test_only_regular_files_are_read(tmp_path):
    save(tmp_path / "1/a.png", picture(1))
    with pytest.raises(CodecError, match=r"the sizes /dev/zero cannot be read: no regular file"):
        Folder(1, path=tmp_path, sizes=tmp_path.joinpath("/dev/zero"))
