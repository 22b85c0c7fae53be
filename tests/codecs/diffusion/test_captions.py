"""Captions: the bits that SLIM published, CLIP's tokens under the static prior, and hostile text."""

import hashlib
import json
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icmbench.codecs.base import BitstreamError, CodecError
from icmbench.codecs.bitstream import Text
from icmbench.codecs.diffusion.prompts import clip_tokens, prior
from icmbench.codecs.diffusion.prompts.captions import CODERS, MAX_BYTES, CaptionGuide, pack_caption, pack_tokens, unpack_caption

SHA256 = "d56014fab5cf91fa0bcae745931d1adc257518183da46233fe383ee8a54512d6"
# PUBLISHED's captions as the prior of these counts codes them.
PRIOR_BYTES = [
    "80da0aa01afd18d25101",
    "a542bc45154f55bef9f28c5b7135c4b101",
    "e1d2a26cec9f29f7471d",
    "45aee182bd9100dec3db391d",
]
IMAGE = np.zeros((4, 4, 3), np.uint8)
# Captions and their bits in SLIM's supplementary figure 7.
PUBLISHED = {
    "a dog with a bone in its mouth": 304,
    "three yellow bowls with green floral designs on them": 456,
    "a red barn in the middle of a field": 344,
    "a large sailboat is sailing on the water": 352,
}


def test_zlib_gives_the_published_bits():
    assert [pack_caption(caption, "zlib").bits for caption in PUBLISHED] == list(PUBLISHED.values())
    assert [pack_caption(caption, "deflate").bits for caption in PUBLISHED] == [bits - 48 for bits in PUBLISHED.values()]
    assert [pack_caption(caption, "utf8").bits for caption in PUBLISHED] == [240, 416, 280, 320]


def test_the_smallest_is_chosen():
    assert pack_caption("a dog").mode == CODERS["utf8"]
    assert pack_caption("a dog and " * 8).mode == CODERS["deflate"]
    for caption in (*PUBLISHED, "a dog and " * 8):
        assert pack_caption(caption).bits == min(pack_caption(caption, coder).bits for coder in ("utf8", "deflate", "zlib"))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300), st.sampled_from(["utf8", "deflate", "zlib", "smallest"]))
def test_any_text_comes_back(text, coder):
    expected = " ".join(text.encode("utf-8", "replace").decode().split())
    packed = pack_caption(text, coder)
    assert unpack_caption(packed) == expected[: len(expected.encode()[:MAX_BYTES].decode("utf-8", "ignore"))]
    assert (packed is None) == (not expected)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 49407), max_size=100), st.sampled_from(["clip16", "prior"]))
def test_any_tokens_come_back(ids, coder):
    packed = pack_tokens(ids, coder)
    assert unpack_caption(packed) == (tuple(ids[: clip_tokens.MAX_TOKENS]) or "")
    if packed and coder == "clip16":
        assert packed.bits == 16 * min(len(ids), clip_tokens.MAX_TOKENS)


def test_empty_captions_cost_nothing():
    for coder in ("smallest", *CODERS):
        assert pack_caption("  \n", coder) is None
    assert pack_tokens([]) is None
    assert unpack_caption(None) == ""


def test_prior_on_coco_captions(shared):
    """The prior comes from WordNet's definitions and examples, so COCO's captions are new to it."""
    annotations = json.loads((shared / "data/coco/annotations/captions_val2017.json").read_text())["annotations"]
    ids = [clip_tokens.tokenize(annotation["caption"]) for annotation in annotations]
    bits = [pack_tokens(tokens, "prior").bits for tokens in ids]
    smallest = [pack_caption(annotation["caption"]).bits for annotation in annotations]
    bits_per_token = sum(bits) / sum(map(len, ids))
    print(f"prior: {bits_per_token:.2f} bits per token over {len(ids)} captions")
    print(f"bits per caption: prior {np.mean(bits):.0f}, smallest {np.mean(smallest):.0f}")
    assert bits_per_token < 12
    assert sum(bits) < 0.5 * sum(smallest)
    assert [unpack_caption(pack_tokens(tokens, "prior")) for tokens in ids[:50]] == [tuple(tokens) for tokens in ids[:50]]


def test_the_prior_is_the_one_that_streams_name():
    """If the counts or the coded bytes change, the prior needs another number in CODERS."""
    arrays = [value for value in vars(prior.load_prior()).values() if isinstance(value, np.ndarray)]
    assert hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest() == SHA256
    for (caption, _), data in zip(PUBLISHED.items(), PRIOR_BYTES):
        packed = pack_caption(caption, "prior")
        assert (packed.mode, packed.data.hex()) == (6, data)
        assert unpack_caption(packed) == tuple(clip_tokens.tokenize(caption))


def test_counting_a_corpus():
    """The pairs (START, 5) and (5, 6) occur twice and get a row each. All other pairs are coded by the single counts."""
    small = prior.count_tokens([[5, 6, 7], [5, 6, 8]])
    assert small.before.tolist() == [5, clip_tokens.START]
    assert small.followers.tolist() == [6, 5]
    assert small.pairs.tolist() == [5, 5]  # 2 - 3/4 in quarters.
    assert small.other.tolist() == [4, 4]
    assert small.single[[5, 7, 9]].tolist() == [17, 9, 1]
    usual, rare = small.encode([5, 6, 5, 6, 5, 6]), small.encode([5, 9, 5, 10, 5, 11])
    assert len(usual) < len(rare)
    assert small.decode(rare, 6) == (5, 9, 5, 10, 5, 11)


def test_wordnet_is_read_as_documented(tmp_path):
    (tmp_path / "data.noun").write_text('  1 licence\n00001740 03 n 01 dog 0 000 | a canine; "the dog barked all night"; (a; b)\n')
    for part in ("verb", "adj", "adv"):
        (tmp_path / f"data.{part}").write_text("")
    assert list(prior.wordnet_texts(tmp_path)) == ["a canine", "the dog barked all night", "(a", "b)"]


BOMB = zlib.compress(b"a" * 50_000_000, 9)


@pytest.mark.parametrize(
    "text",
    [
        Text(1, 1, 8, b"a"),  # The number of tags.
        Text(9, 1, 8, b"a"),  # A number of no coder.
        Text(CODERS["utf8"], 0, 0, b""),  # An empty caption, which an encoder does not send.
        Text(CODERS["utf8"], 1, 8, b"a"),
        Text(CODERS["utf8"], 0, 7, b"a"),
        Text(CODERS["utf8"], 0, 8, b"\xff"),
        Text(CODERS["utf8"], 0, 8 * (MAX_BYTES + 1), b"a" * (MAX_BYTES + 1)),
        Text(CODERS["zlib"], 0, 8 * len(BOMB), BOMB),
        Text(CODERS["zlib"], 0, 32, b"abcd"),
        Text(CODERS["zlib"], 0, 80, zlib.compress(b"abcdef")[:10]),
        Text(CODERS["deflate"], 0, 8, b"\x03"),
        Text(CODERS["deflate"], 0, 80, b"\x4b\x04\x00garbage"),
        Text(CODERS["clip16"], 0, 0, b""),
        Text(CODERS["clip16"], 1, 8, b"a"),
        Text(CODERS["clip16"], 1, 16, b"\xff\xff"),
        Text(CODERS["clip16"], 76, 16 * 76, b"\0\0" * 76),
        Text(CODERS["prior"], 0, 0, b""),
        Text(CODERS["prior"], 1, 0, b""),
        Text(CODERS["prior"], 9, 16, b"ab"),
        Text(CODERS["prior"], 4000, 800, bytes(range(100))),
    ],
)
def test_hostile_text(text):
    with pytest.raises(BitstreamError):
        unpack_caption(text)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(CODERS.values())), st.integers(0, 80), st.binary(max_size=60))
def test_random_text_is_read_or_refused(mode, count, data):
    try:
        prompt = unpack_caption(Text(mode, count, 8 * len(data), data))
    except BitstreamError:
        return
    assert isinstance(prompt, str) or all(0 <= token < 49408 for token in prompt)


def test_guide_takes_captions_and_captioners(tmp_path):
    class SizeCaptioner:
        facts = "size"

        def caption(self, image):
            return f"a picture of {image.shape[0]} lines"

    (tmp_path / "captions.json").write_text(json.dumps({"a.png": "a cat", "b.png": ""}))
    for_all, by_id = CaptionGuide("a dog"), CaptionGuide(tmp_path / "captions.json")
    assert for_all.prompt(for_all.encode(IMAGE, "z")) == "a dog"
    assert by_id.prompt(by_id.encode(IMAGE, "a.png")) == "a cat"
    assert by_id.encode(IMAGE, "b.png") is None
    assert CaptionGuide().encode(IMAGE) is None
    with pytest.raises(CodecError, match=r"no caption for image 'c.png'"):
        by_id.encode(IMAGE, "c.png")
    both = CaptionGuide(tmp_path / "captions.json", SizeCaptioner(), "prior")
    assert both.prompt(both.encode(IMAGE, "c.png")) == tuple(clip_tokens.tokenize("a picture of 4 lines"))
    assert both.encode(IMAGE, "b.png") is None
    assert (
        len({json.dumps(guide.facts) for guide in (for_all, by_id, both, CaptionGuide(), CaptionGuide("a dog", coder="utf8"))}) == 5
    )


def test_facts_hold_captions_by_image_id_apart_from_those_for_all():
    """Captions by image id change the facts of their images alone; a caption for all images is in the facts of the guide."""
    by_id = CaptionGuide({"a.png": "a cat", "b.png": ""})
    more = CaptionGuide({"new.png": "a boat", "a.png": "a cat", "b.png": "a dog"})
    assert by_id.facts == more.facts
    assert [by_id.image_facts(image_id) for image_id in ("a.png", "b.png", "c.png")] == ["a cat", "", None]
    assert [more.image_facts(image_id) for image_id in ("a.png", "b.png", "c.png")] == ["a cat", "a dog", None]
    assert CaptionGuide("a dog").image_facts("a.png") is None and CaptionGuide().image_facts("a.png") is None
    # Without a captioner, an image that a file lacks is an error, but has no words where there is no file.
    assert len({json.dumps(guide.facts) for guide in (by_id, CaptionGuide(), CaptionGuide("a dog"), CaptionGuide("a cat"))}) == 4


def test_mistakes_are_named(tmp_path):
    with pytest.raises(CodecError, match=r"no coder of captions 'lzma'"):
        CaptionGuide("a dog", coder="lzma")
    with pytest.raises(CodecError, match=r"not by utf8"):
        pack_tokens([1], "utf8")
    with pytest.raises(CodecError, match=r"not among CLIP's"):
        pack_tokens([49408])
    for content, message in (("{", "is no JSON"), ('["a"]', "no file of captions"), ('{"a": 1}', "no file of captions")):
        (tmp_path / "captions.json").write_text(content)
        with pytest.raises(CodecError, match=message):
            CaptionGuide(tmp_path / "captions.json")


def test_captions_import_nothing_heavy():
    heavy = {"torch", "transformers", "constriction"}
    code = f"import sys, icmbench.codecs.diffusion.prompts.captions; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"
