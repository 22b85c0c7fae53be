"""Given damaged or hostile bytes, the readers of foreign files raise only the errors that they declare.

In the suite, hypothesis mutates valid examples. With `tox run -e soak`, atheris searches by coverage for ICMBENCH_FUZZ_SECONDS,
divided among all targets, each in a process that runs this file:

    python tests/test_fuzz.py TARGET CORPUS -max_total_time=60
"""

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path
from types import FunctionType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from icmbench.codecs.base import BitstreamError, CodecError
from icmbench.codecs.bitstream import Container, codec_name, seal
from icmbench.codecs.classical import Jpeg, Jpeg2000, WebP
from icmbench.codecs.folder import Folder
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import load_experiment
from icmbench.harness.store.folder import Folder as RunFolder
from icmbench.harness.store.pack import Pack
from icmbench.harness.store.parquet_files import read_table
from icmbench.harness.work.bench import Bench
from icmbench.results.scores import ScoresError, read_scores
from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.coco import Coco
from icmbench.tasks.datasets.flickr30k import Flickr30k
from icmbench.tasks.datasets.imagenet import ImageNet
from icmbench.tasks.datasets.images import Preprocessing, read_image
from icmbench.tasks.datasets.refcoco import RefCoco

DECLARED = (BitstreamError, CodecError, UserError, DatasetError, ScoresError)
SECONDS = int(os.environ.get("ICMBENCH_FUZZ_SECONDS", "0"))
WORK = Path(tempfile.mkdtemp(prefix="icmbench-fuzz-"))
PICTURES = WORK / "pictures"
IMAGE = np.arange(24 * 20 * 3, dtype=np.uint8).reshape(24, 20, 3)
CODECS = [Jpeg(50), Jpeg2000(20), WebP(50)]


def make_pictures():
    PICTURES.mkdir(exist_ok=True)
    for name in ("a.png", "b.png"):
        Image.fromarray(IMAGE).save(PICTURES / name)


def write_file(data, name):
    path = WORK / name
    path.write_bytes(data)
    return path


# The targets: each reads bytes with one reader of this project.


def container(data):
    for body in (data, seal(data)):
        with contextlib.suppress(BitstreamError):
            Container.from_bytes(body).verify(body, 0)
        with contextlib.suppress(BitstreamError):
            codec_name(body)


def streams(data):
    for codec in CODECS:
        try:
            image = codec.decompress(data)
        except BitstreamError:
            continue
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


def picture(data):
    read_image(write_file(data, "picture"))


def experiment(data):
    path = write_file(data, "experiment.yaml")
    _ = Bench(load_experiment(path), RunFolder(WORK / "run")).datasets


def pack(data):
    Pack(write_file(data, "x.icmpack")).check()


def shard(data):
    write_file(data, "x.parquet")
    read_table(RunFolder(WORK), "x.parquet")


def scores(data):
    read_scores(write_file(data, "scores.csv"))


def sizes(data):
    Folder("p", path=WORK, sizes=write_file(data, "sizes.csv"))


def preprocessing(data):
    Preprocessing.parse(data.decode(errors="replace"))


def coco(data):
    path = write_file(data, "coco.json")
    dataset = Coco(PICTURES, instances=path, keypoints=path, captions=path, panoptic=path, panoptic_masks=PICTURES)
    for kind in ("instances", "keypoints", "captions", "panoptic"):
        ids = dataset.annotated(kind)
        for target in dataset.targets(kind, ids):
            assert "mask" not in target or PICTURES in target["mask"].resolve().parents
    for image_id in dataset.ids:
        dataset.read(image_id)


def flickr(data):
    dataset = Flickr30k(PICTURES, write_file(data, "flickr.json"))
    dataset.targets("captions", dataset.ids)


def refcoco(data):
    path = write_file(data, "refs.json")
    dataset = RefCoco(PICTURES, path, instances=path, split="val")
    dataset.targets("referring", dataset.ids)


def imagenet_csv(data):
    dataset = ImageNet(PICTURES, write_file(data, "labels.csv"))
    dataset.targets("class", dataset.ids)


def imagenet_list(data):
    ImageNet(PICTURES, write_file(data, "labels.txt"), write_file(data, "classes.txt"))


def imagenet_mat(data):
    ImageNet(PICTURES, write_file(b"1\n2\n", "labels2.txt"), write_file(data, "meta.mat"))


def encoded_image(image_format, **options):
    buffer = io.BytesIO()
    Image.fromarray(IMAGE).save(buffer, image_format, **options)
    return buffer.getvalue()


def valid_pack():
    stream = hashlib.sha256(b"stream").hexdigest()
    row = {"id": "a", "source": "0" * 64, "stream": stream, "pixels": "0" * 64, "bytes": 6, "encode_seconds": 1.0}
    point = {"label": "q=1", "given": 1, "seed": None, "fingerprint": "{}", "deterministic": True, "streams": [row]}
    text = json.dumps({"format": "icmbench-pack-1", "codec": "jpeg", "made": {}, "points": [point]}).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(stream, b"stream")
        archive.writestr("manifest.json", text)
        archive.comment = hashlib.sha256(text).hexdigest().encode()
    return buffer.getvalue()


def valid_shard():
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    table = pa.table({"id": ["a", "b"], "boxes": [[1.0, 2.0], []], "data": [b"xyz", None]})
    pq.write_table(table, buffer, write_page_checksum=True)
    return buffer.getvalue()


BOX = {"image_id": 1, "id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0, "keypoints": [1, 2, 2]}
COCO = {
    "images": [{"id": 1, "file_name": "a.png", "height": 24, "width": 20}],
    "annotations": [
        {**BOX, "num_keypoints": 1, "caption": "x", "file_name": "b.png", "segments_info": [{"id": 1, "category_id": 1}]}
    ],
    "categories": [{"id": 1, "name": "cat", "keypoints": ["nose"], "isthing": 1}],
}
EXPERIMENT = b"""name: small
datasets: {photos: {kind: images, images: pictures, limit: 1, preprocessing: "short:8"}}
codecs: [{name: jpeg, points: [10, 20], set: {progressive: true}, label: &l x}]
tasks: [{name: fidelity, dataset: photos, reference: labels}]
fail_on_error: 0.5
timeout: 3
anchor: *l
"""
REFS = [{"file_name": "a.png", "sentence": "the cat", "bbox_xywh": [1, 2, 3, 4]}]
TOOLBOX = {"split": "val", "ann_id": 1, "image_id": 1, "sentences": [{"sent": "the cat"}]}
KARPATHY = {"images": [{"split": "test", "filename": "a.png", "sentences": [{"raw": "a cat"}]}]}
STREAM = Container("elic", 1, 20, 24, b"payload", 3, checksum=7, seed=5, model_hash=b"abcd").to_bytes()

# Valid examples for each target, from which both fuzzers start.
TARGETS = {
    container: [STREAM[:-2], Container("my-codec", 1, 20, 24, b"p", checksum=7, colour=bytes(12)).to_bytes()[:-2]],
    streams: [encoded_image("JPEG"), encoded_image("WEBP"), encoded_image("JPEG2000")],
    picture: [encoded_image("PNG"), encoded_image("JPEG"), encoded_image("TIFF"), encoded_image("BMP"), encoded_image("PPM")],
    experiment: [EXPERIMENT],
    pack: [valid_pack()],
    shard: [valid_shard()],
    scores: [b"codec,bpp,metric,value,unit\njpeg,0.5,AP,30,%\njpeg,0.6,AP,33,%\n", b"codec,bpp,psnr\njpeg,1,30\n"],
    sizes: [b"image,point,bytes\na.png,p,12\n", b"image,point,bits\na,p,12.5\n"],
    preprocessing: [b"resize:512x512", b"short:768,crop:768x768"],
    coco: [json.dumps(COCO).encode()],
    flickr: [json.dumps(KARPATHY).encode()],
    refcoco: [json.dumps(REFS).encode(), json.dumps([TOOLBOX]).encode()],
    imagenet_csv: [b"file,class_index\na.png,3\nb.png,4\n"],
    imagenet_list: [b"a.png 3\nb.png 4\n", b"1\n2\n"],
    imagenet_mat: [b"MATLAB 5.0 MAT-file" + bytes(200)],
}
JSON_TARGETS = (coco, flickr, refcoco)
HOSTILE = [b"", b"\0" * 100, b"[" * 100_000, b'{"images": ' * 5_000, b"9" * 5_000, b"\xff\xfe\x00", b"null", b"[1]", b"[[]]", b"{}"]


def read(target, data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow and NumPy warn about bad files.
        try:
            target(data)
        except DECLARED as error:
            assert "\n" not in str(error).strip() or target in (streams, experiment)


@st.composite
def mutated(draw, examples):
    """A valid example after a few flipped bits, cuts, insertions and repetitions."""
    data = bytearray(draw(st.sampled_from(examples)))
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, max(0, len(data) - 1)))
        mutation = draw(st.integers(0, 4))
        if mutation == 0 and data:
            data[position] ^= 1 << draw(st.integers(0, 7))
        elif mutation == 1:
            del data[position : position + draw(st.integers(1, 40))]
        elif mutation == 2:
            data[position:position] = draw(st.binary(max_size=12))
        elif mutation == 3:
            data[position:position] = data[position : position + draw(st.integers(1, 40))]
        elif mutation == 4:
            del data[position:]
    return bytes(data)


WORDS = st.sampled_from(["../../x", "/etc/passwd", "a.png", "\0", "x" * 4000])
SCALARS = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | WORDS
VALUES = SCALARS | st.lists(SCALARS, max_size=4) | st.dictionaries(WORDS, SCALARS, max_size=2)


@st.composite
def rearranged(draw, examples):
    """A valid JSON document in which up to three values are replaced or dropped; it remains well-formed."""
    document = json.loads(draw(st.sampled_from(examples)))
    for _ in range(draw(st.integers(1, 3))):
        node, path = document, []
        while isinstance(node, (dict, list)) and node and (not path or draw(st.integers(0, 3))):
            key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
            path.append((node, key))
            node = node[key]
        if path:
            parent, key = path[-1]
            if draw(st.booleans()):
                parent[key] = draw(VALUES)
            else:
                del parent[key]
    return json.dumps(document).encode()


@pytest.fixture(autouse=True, scope="module")
def pictures():
    make_pictures()


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__)
def test_readers_raise_only_what_they_declare(target):
    for data in [*TARGETS[target], *HOSTILE]:
        read(target, data)
    inputs = mutated(TARGETS[target])
    if target in JSON_TARGETS:
        inputs = inputs | rearranged(TARGETS[target])

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
    @given(inputs)
    def fuzz(data):
        read(target, data)

    fuzz()


@pytest.mark.skipif(not SECONDS, reason="a soak test: set ICMBENCH_FUZZ_SECONDS to its duration")
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__)
def test_coverage_guided(target, tmp_path):
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed; only some versions of Python have wheels of it")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, data in enumerate([*TARGETS[target], *HOSTILE]):
        (corpus / str(number)).write_bytes(data)
    limits = [f"-max_total_time={max(5, SECONDS // len(TARGETS))}", "-max_len=4096", "-timeout=60", "-rss_limit_mb=3000"]
    command = [sys.executable, __file__, target.__name__, str(corpus), f"-artifact_prefix={tmp_path}/", *limits]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=tmp_path)
    print(target.__name__, *[line for line in done.stderr.splitlines() if line.startswith(("Done", "stat::"))])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def main():
    import atheris

    make_pictures()
    target = globals()[sys.argv[1]]
    for name, module in list(sys.modules.items()):
        if name.startswith("icmbench."):
            owners = [module, *(value for value in vars(module).values() if getattr(value, "__module__", "") == name)]
            for function in [value for owner in owners if hasattr(owner, "__dict__") for value in vars(owner).values()]:
                if isinstance(function, FunctionType) and function.__module__ == name:
                    atheris.instrument_func(function)  # This changes the function in place.
    atheris.Setup([sys.argv[0], *sys.argv[2:]], lambda data: read(target, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
