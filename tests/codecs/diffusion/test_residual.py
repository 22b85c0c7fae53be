"""Semantic residual retrieval: what the models are asked, and what a stream then holds."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from icmbench.codecs.base import CodecError
from icmbench.codecs.bitstream import Container
from icmbench.codecs.diffusion.prompts import captions, clip_tokens
from icmbench.codecs.resulic import SUFFIX, Resulic

pytestmark = pytest.mark.filterwarnings("ignore:resulic. weights of profile tiny are random")
CAPTIONS = {"original": "A red barn by a pond.", "preview": "red house"}


@pytest.fixture
def image(picture):
    return picture(64, 64)


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict]]]:
    """A chat endpoint's address, and the requests that it got. It captions images by their order, and answers other prompts."""
    requests: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            *pictures, prompt = request["messages"][0]["content"]
            captioned = sum(bool(previous["pictures"]) for previous in requests)
            answer = list(CAPTIONS.values())[captioned] if pictures else '"Barn, pond"'
            requests.append({"pictures": pictures, "prompt": prompt["text"], "model": request["model"]})
            body = json.dumps({"choices": [{"message": {"content": answer}}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/v1", requests
        http.shutdown()


def words_in_stream(codec: Resulic, image: np.ndarray, image_id: str = "") -> str:
    from icmbench.codecs.diffusion.backbone.stable_diffusion import clip_tokenizer

    text = Container.from_bytes(codec.compress(image, image_id)).text
    return "" if text is None else clip_tokenizer().decode(captions.unpack_caption(text)).strip()


def make_codec(**options) -> Resulic:
    return Resulic(36, profile="tiny", weights="random", device="cpu", steps=2, text="clip16", **options)


def test_one_served_model_captions_and_reasons(server, image):
    """Three requests with the paper's prompts: caption of the original, caption of the preview, and their difference."""
    url, requests = server
    codec = make_codec(captioner={"url": url, "model": "vlm"})
    assert words_in_stream(codec, image) == "barn , pond"
    assert [bool(request["pictures"]) for request in requests] == [True, True, False]
    assert requests[0]["prompt"].startswith("Please describe this picture in detail with 40 words.")
    assert requests[0]["pictures"] != requests[1]["pictures"]
    assert "Original Image: 'A red barn by a pond.'; Compressed Image: 'red house'. Provide information" in requests[2]["prompt"]
    assert {request["model"] for request in requests} == {"vlm"}


def test_functions_and_given_captions(image, tmp_path):
    """Captions of originals may be given. The captioner sees the decoder's preview. Two descriptions that agree cost no bits."""
    described, prompts = [], []

    def describe(picture):
        described.append(picture)
        return "red house"

    def subtract(prompt):
        prompts.append(prompt)
        return "''"

    (tmp_path / "captions.json").write_text(json.dumps({"a": "A red barn.", "b": ""}))
    codec = make_codec(captions=tmp_path / "captions.json", captioner=describe, llm=subtract)
    data = codec.compress(image, "a")
    assert Container.from_bytes(data).text is None
    assert codec.rate_breakdown(data)["text"] == 0
    assert len(described) == 1 and described[0].shape == image.shape and not np.array_equal(described[0], image)
    assert "Original Image: 'A red barn.'; Compressed Image: 'red house'" in prompts[0]
    codec.compress(image, "b")  # The caption is empty, so no model is asked.
    assert len(prompts) == 1
    codec.compress(image, "c")  # No caption is given, so original and preview are described.
    assert len(described) == 3


def test_srr_is_switched_off_beside_a_captioner_that_chats(server, image):
    """The paper's ablation without Srr: one request, for the caption of the original, which is sent in full."""
    url, requests = server
    codec = make_codec(captioner={"url": url, "model": "vlm"}, llm="none")
    assert words_in_stream(codec, image) == "a red barn by a pond ."
    assert len(requests) == 1
    assert codec.fingerprint != make_codec(captioner={"url": url, "model": "vlm"}).fingerprint


def test_without_a_language_model_captions_are_sent_in_full(image):
    assert words_in_stream(make_codec(captioner=lambda _: "A red barn"), image) == "a red barn"
    assert words_in_stream(make_codec(captions="A boat"), image) == "a boat"
    assert words_in_stream(make_codec(captions="A boat", residuals="a sail"), image) == "a sail"
    assert words_in_stream(make_codec(), image) == ""


def test_optimised_tokens_are_sent(image, monkeypatch):
    """The search starts from the residual. The tokens that it finds are sent and decoded, although no text has these tokens."""
    from icmbench.codecs.diffusion.prompts.pfo import PerceptualFidelity

    optimised = (49405, 0, 17)
    starts = []
    monkeypatch.setattr(PerceptualFidelity, "__call__", lambda self, ids, *_: starts.append(ids) or optimised)
    codec = make_codec(residuals="a red barn", pfo={"iterations": 3, "rate": 0.1})
    data = codec.compress(image)
    assert starts == [tuple(clip_tokens.tokenize("a red barn"))]
    assert captions.unpack_caption(Container.from_bytes(data).text) == optimised
    assert codec._request(data).prompt == (*optimised, *clip_tokens.tokenize(", " + SUFFIX))
    assert codec.fingerprint != make_codec(residuals="a red barn").fingerprint


def test_search_within_the_encoder(image):
    """The whole encoder runs with a search that ST-LPIPS judges."""
    codec = make_codec(residuals="a red barn", pfo={"iterations": 1, "every": 1, "perceptual": "stlpips-alex"})
    data = codec.compress(image)
    assert Container.from_bytes(data).text.count == 3
    assert codec.decompress(data).shape == image.shape
    assert codec.compress(image) == data


def test_mistakes_are_named(image):
    with pytest.raises(CodecError, match=r"no text"):
        Resulic(36, profile="tiny", weights="random", device="cpu", text="zlib", pfo=True)
    with pytest.raises(CodecError, match=r"arguments of pfo"):
        make_codec(pfo={"speed": 3})
    with pytest.raises(CodecError, match=r"not text"):
        make_codec(captions="A boat", captioner=lambda _: "boat", llm=lambda _: None).compress(image)
