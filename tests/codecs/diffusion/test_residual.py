"""Semantic residual retrieval: what is asked, what is sent."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from icmbench.codecs.base import CodecError
from icmbench.codecs.bitstream import Container
from icmbench.codecs.diffusion.prompts import captions
from icmbench.codecs.resulic import SUFFIX, Resulic

pytestmark = pytest.mark.filterwarnings("ignore:resulic. weights of profile tiny are random")
CAPTIONS = {"original": "A red barn by a pond.", "preview": "red house"}


@pytest.fixture
def image(picture):
    return picture(64, 64)


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict]]]:
    """A chat endpoint: knows nothing of images but their order, answers the residual prompt, keeps what it was asked."""
    asked: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            *pictures, words = request["messages"][0]["content"]
            said = list(CAPTIONS.values())[sum(bool(one["pictures"]) for one in asked)] if pictures else '"Barn, pond"'
            asked.append({"pictures": pictures, "words": words["text"], "model": request["model"]})
            body = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/v1", asked
        http.shutdown()


def said(codec: Resulic, image: np.ndarray, image_id: str = "") -> str:
    from icmbench.codecs.diffusion.backbone.stable_diffusion import clip_tokenizer

    text = Container.from_bytes(codec.compress(image, image_id)).text
    return "" if text is None else clip_tokenizer().decode(captions.unpack(text)).strip()


def codec_of(**options) -> Resulic:
    return Resulic(36, profile="tiny", weights="random", device="cpu", steps=2, text="clip16", **options)


def test_a_served_model_does_all(server, image):
    """Caption of the original, of the decoded preview, and their difference: three requests, the paper's prompts."""
    url, asked = server
    codec = codec_of(captioner={"url": url, "model": "vlm"})
    assert said(codec, image) == "barn , pond"
    assert [bool(one["pictures"]) for one in asked] == [True, True, False]
    assert asked[0]["words"].startswith("Please describe this picture in detail with 40 words.")
    assert asked[0]["pictures"] != asked[1]["pictures"]
    assert "Original Image: 'A red barn by a pond.'; Compressed Image: 'red house'. Provide information" in asked[2]["words"]
    assert {one["model"] for one in asked} == {"vlm"}


def test_functions_and_given_captions(image, tmp_path):
    """The original's caption may be given; the preview is seen as the decoder sees it; two descriptions that agree cost nothing."""
    seen, prompts = [], []

    def describe(picture):
        seen.append(picture)
        return "red house"

    def subtract(prompt):
        prompts.append(prompt)
        return "''"

    (tmp_path / "captions.json").write_text(json.dumps({"a": "A red barn.", "b": ""}))
    codec = codec_of(captions=tmp_path / "captions.json", captioner=describe, llm=subtract)
    data = codec.compress(image, "a")
    assert Container.from_bytes(data).text is None
    assert codec.rate_breakdown(data)["text"] == 0
    assert len(seen) == 1 and seen[0].shape == image.shape and not np.array_equal(seen[0], image)
    assert "Original Image: 'A red barn.'; Compressed Image: 'red house'" in prompts[0]
    codec.compress(image, "b")  # nothing to say, nobody asked
    assert len(prompts) == 1
    codec.compress(image, "c")  # described, as no caption is given
    assert len(seen) == 3


def test_without_a_language_model_captions_are_said_in_full(image):
    assert said(codec_of(captioner=lambda _: "A red barn"), image) == "a red barn"
    assert said(codec_of(captions="A boat"), image) == "a boat"
    assert said(codec_of(captions="A boat", residuals="a sail"), image) == "a sail"
    assert said(codec_of(), image) == ""


def test_optimised_tokens_are_sent(image, monkeypatch):
    """The search starts from the residual, and what it finds is what is sent and drawn from, though no text has these tokens."""
    from icmbench.codecs.diffusion.prompts.pfo import PerceptualFidelity

    found = (49405, 0, 17)
    starts = []
    monkeypatch.setattr(PerceptualFidelity, "__call__", lambda self, ids, *_: starts.append(ids) or found)
    codec = codec_of(residuals="a red barn", pfo={"iterations": 3, "rate": 0.1})
    data = codec.compress(image)
    assert starts == [tuple(captions.tokens("a red barn"))]
    assert captions.unpack(Container.from_bytes(data).text) == found
    assert codec._request(data).prompt == (*found, *captions.tokens(", " + SUFFIX))
    assert codec.fingerprint != codec_of(residuals="a red barn").fingerprint


def test_optimised_for_real(image):
    """Through the whole encoder, judged by ST-LPIPS."""
    codec = codec_of(residuals="a red barn", pfo={"iterations": 1, "every": 1, "perceptual": "stlpips-alex"})
    data = codec.compress(image)
    assert Container.from_bytes(data).text.count == 3
    assert codec.decompress(data).shape == image.shape
    assert codec.compress(image) == data


def test_what_cannot_be(image):
    with pytest.raises(CodecError, match=r"no text"):
        Resulic(36, profile="tiny", weights="random", device="cpu", text="zlib", pfo=True)
    with pytest.raises(CodecError, match=r"arguments of pfo"):
        codec_of(pfo={"speed": 3})
    with pytest.raises(CodecError, match=r"not text"):
        codec_of(captions="A boat", captioner=lambda _: "boat", llm=lambda _: None).compress(image)
