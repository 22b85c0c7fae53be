"""Tags of 13 bits each, from the user, a file or a tagger."""

import json

import numpy as np
import pytest

from icmbench.codecs.base import BitstreamError, CodecError
from icmbench.codecs.bitstream import Text
from icmbench.codecs.diffusion.prompts.taggers import build_tag_guide
from icmbench.codecs.diffusion.prompts.tags import MAX_TAGS, TagGuide

IMAGE = np.zeros((4, 4, 3), np.uint8)
LARGE = [f"tag{i}" for i in range(4585)]


def test_bits_are_the_published_ones():
    """RAM++'s vocabulary takes 13 bits per tag, most significant bit first."""
    guide = TagGuide(LARGE, tags=["tag1", "tag4584"])
    text = guide.encode(IMAGE)
    assert (guide.bits, text.count, text.bits) == (13, 2, 26)
    assert text.data == int("0000000000001" + "1000111101000" + "000000", 2).to_bytes(4, "big")
    assert guide.prompt(text) == "tag1, tag4584"


@pytest.mark.parametrize("size", [1, 2, 255, 256, 4585])
def test_round_trip(size):
    guide = TagGuide(LARGE[:size])
    for count in (0, 1, 8, MAX_TAGS):
        tags = np.random.default_rng(count).integers(0, size, count).tolist()
        assert guide.unpack(guide.pack(tags)) == tags
    assert guide.pack([]) is None
    assert guide.prompt(None) == ""
    assert len(guide.unpack(guide.pack([0] * 1000))) == MAX_TAGS


def test_tags_from_a_file_and_a_tagger(tmp_path):
    (tmp_path / "words.txt").write_text("cat\ndog\ntree\n")
    (tmp_path / "tags.json").write_text(json.dumps({"a.png": ["dog", "cat"], "b.png": []}))
    guide = build_tag_guide(tmp_path / "words.txt", tmp_path / "tags.json")
    assert guide.prompt(guide.encode(IMAGE, "a.png")) == "dog, cat"
    assert guide.encode(IMAGE, "b.png") is None
    with pytest.raises(CodecError, match=r"no tags for image 'c.png'"):
        guide.encode(IMAGE, "c.png")
    tagged = build_tag_guide(tmp_path / "words.txt", tmp_path / "tags.json", lambda image: [image.shape[0] - 2])
    assert tagged.prompt(tagged.encode(IMAGE, "c.png")) == "tree"
    assert tagged.encode(IMAGE, "b.png") is None


def test_facts_hold_tags_by_image_id_apart_from_those_for_all():
    words = ["cat", "dog", "tree"]
    by_id = TagGuide(words, {"a.png": ["dog", "cat"], "b.png": []})
    more = TagGuide(words, {"new.png": ["tree"], "a.png": ["dog", "cat"], "b.png": ["tree"]})
    assert by_id.facts == more.facts
    assert [by_id.image_facts(image_id) for image_id in ("a.png", "b.png", "c.png")] == [[1, 0], [], None]
    assert [more.image_facts(image_id) for image_id in ("a.png", "b.png", "c.png")] == [[1, 0], [2], None]
    assert TagGuide(words, ["dog"]).image_facts("a.png") is None and TagGuide(words, {}).image_facts("a.png") is None
    guides = (by_id, TagGuide(words), TagGuide(words, ["dog"]), TagGuide(words, ["cat"]), TagGuide(words[:2], ["dog"]))
    assert len({json.dumps(guide.facts) for guide in guides}) == len(guides)
    assert TagGuide(words, {}).facts == TagGuide(words).facts and TagGuide(words, {}).encode(IMAGE, "a.png") is None


def test_mistakes_are_named(tmp_path):
    with pytest.raises(CodecError, match=r"set `vocabulary`"):
        TagGuide(tags=["cat"])
    with pytest.raises(CodecError, match=r"no 'unicorn'"):
        TagGuide(["cat"], tags=["unicorn"])
    with pytest.raises(CodecError, match=r"words.txt cannot be read"):
        build_tag_guide(tmp_path / "words.txt")
    (tmp_path / "words.txt").write_text("cat")
    (tmp_path / "tags.json").write_text("{")
    with pytest.raises(CodecError, match=r"tags.json is no JSON"):
        build_tag_guide(tmp_path / "words.txt", tmp_path / "tags.json")


@pytest.mark.parametrize(
    "text",
    [
        Text(2, 1, 13, b"\0\0"),  # Text of another coder.
        Text(1, 1, 12, b"\0\0"),  # Another number of bits per tag.
        Text(1, 1, 13, b"\xff\xff"),  # An index beyond the vocabulary.
    ],
)
def test_foreign_text_is_refused(text):
    with pytest.raises(BitstreamError):
        TagGuide(LARGE).prompt(text)
    with pytest.raises(BitstreamError, match=r"set `vocabulary`"):
        TagGuide().prompt(text)
