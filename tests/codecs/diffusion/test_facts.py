"""Words that files hold by image id: they are facts of one image each, and no part of a codec's fingerprint."""

import json
from pathlib import Path

import numpy as np
import pytest

from icmbench.codecs.bitstream import Container
from icmbench.codecs.cadc import Cadc
from icmbench.codecs.diff_icmh import DiffIcmh
from icmbench.codecs.resulic import Resulic
from icmbench.codecs.slim import Slim

pytestmark = pytest.mark.filterwarnings("ignore:.*weights of profile tiny are random")
TINY = {"profile": "tiny", "weights": "random", "device": "cpu", "steps": 2}
IDS = ["a.png", "b.png", "c.png"]


def make_codec(kind: str, words: dict[str, str], folder: Path):
    """A codec that finds words by image id in a file; tags are the words of a text."""
    (folder / "words.txt").write_text("cat\ndog\nboat\nsail")
    file = folder / "by_id.json"
    file.write_text(json.dumps({key: text.split() for key, text in words.items()} if kind == "tags" else words))
    if kind == "tags":
        return DiffIcmh(2, tags=file, vocabulary=folder / "words.txt", **TINY)
    if kind == "slim":
        return Slim(1, captions=file, **TINY)
    return Resulic(36, **{kind: file}, **TINY)


@pytest.mark.parametrize("kind", ["tags", "slim", "captions", "residuals"])
def test_words_by_id_are_facts_of_their_image_alone(kind, tmp_path):
    words = {"a.png": "cat", "b.png": "dog", "c.png": ""}
    before = make_codec(kind, words, tmp_path)
    facts = [before.facts(image_id) for image_id in IDS]
    assert json.loads(json.dumps(facts)) == facts and None not in facts and len(set(map(str, facts))) == 3
    assert before.facts("unknown.png") is None
    inserted = {"0.png": "boat", **words, "z.png": "sail"}
    renamed = {"0.png": "boat", **words, "y.png": "sail"}
    for others in (inserted, renamed, words):
        codec = make_codec(kind, others, tmp_path)
        assert codec.fingerprint == before.fingerprint
        assert [codec.facts(image_id) for image_id in IDS] == facts
    changed = make_codec(kind, words | {"b.png": "boat"}, tmp_path)
    assert changed.fingerprint == before.fingerprint
    assert [changed.facts(image_id) == fact for image_id, fact in zip(IDS, facts, strict=True)] == [True, False, True]


def test_facts_follow_the_stream(tmp_path, picture):
    """Two images of equal pixels have different streams exactly where their facts differ."""
    codec = make_codec("slim", {"a.png": "cat", "b.png": "dog", "c.png": "cat"}, tmp_path)
    streams = codec.compress_batch([picture(64, 64)] * 3, IDS)
    assert [Container.from_bytes(stream).text.data for stream in streams] == [b"cat", b"dog", b"cat"]
    assert streams[0] == streams[2] != streams[1]
    assert codec.facts("a.png") == codec.facts("c.png") != codec.facts("b.png")


def test_residuals_go_before_captions(tmp_path):
    """Where residuals are given, captions decide nothing, so that they are no facts."""
    for name in ("captions", "residuals"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"a.png": f"from {name}"}))
    both = Resulic(36, captions=tmp_path / "captions.json", residuals=tmp_path / "residuals.json", **TINY)
    assert both.facts("a.png") == "from residuals"
    for_all = Resulic(36, captions=tmp_path / "captions.json", residuals="a sail", **TINY)
    assert for_all.facts("a.png") is None


def test_words_for_all_images_stay_in_the_fingerprint():
    slim, resulic = Slim(1, captions="a dog", **TINY), Resulic(36, residuals="a dog", **TINY)
    assert slim.facts("a.png") is None and slim.fingerprint != Slim(1, captions="a cat", **TINY).fingerprint
    assert resulic.facts("a.png") is None and resulic.fingerprint != Resulic(36, residuals="a cat", **TINY).fingerprint
    assert Cadc(2, profile="tiny", weights="random", device="cpu").facts("a.png") is None


def test_whether_an_image_is_guided_does_not_depend_on_its_company(tiny, picture, tmp_path, monkeypatch):
    """Guidance runs for a whole batch, so streams without words must not share one with streams that have words."""
    from icmbench.codecs.diffusion.engine import CodecModel

    (tmp_path / "words.txt").write_text("cat\ndog")
    (tmp_path / "tags.json").write_text(json.dumps({"a.png": ["cat"], "b.png": [], "c.png": ["dog"]}))
    words = {"tags": tmp_path / "tags.json", "vocabulary": tmp_path / "words.txt"}
    images, batches, predictor = [picture(64, 64, seed) for seed in range(3)], [], CodecModel.predictor

    def record(self, hint, decoding, prompts):
        batches.append(prompts)
        return predictor(self, hint, decoding, prompts)

    monkeypatch.setattr(CodecModel, "predictor", record)
    guided, plain = tiny(**words), tiny(cfg=1.0, **words)
    streams = guided.compress_batch(images, IDS)
    together = guided.decompress_batch(streams)
    assert sorted(map(sorted, batches)) == [[""], ["cat", "dog"]]
    assert np.array_equal(together[1], guided.decompress(streams[1]))
    batches.clear()
    plain.decompress_batch(plain.compress_batch(images, IDS))
    assert [len(prompts) for prompts in batches] == [3]  # Without guidance there is nothing to keep apart.
