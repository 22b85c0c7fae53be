"""Captioners: transformers' own classes at random weights, a real server on loopback, functions."""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from icmbench.codecs.base import CodecError
from icmbench.codecs.diffusion.prompts.captioners import Endpoint, Transformers, captioner_of
from icmbench.codecs.diffusion.prompts.roi import MaskedCaptioner

WORDS = ["a", "the", "dog", "cat", "barn", "field", "bone", "with", "in", "of", "on", "red", "green", "small", "large"]
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
EYES = {"image_size": 32, "patch_size": 16} | SMALL
PHOTOS = [np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8) for seed in range(2)]


def tokenizer(*special: str) -> transformers.PreTrainedTokenizerFast:
    pieces = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS, *special])}
    words = Tokenizer(models.WordLevel(pieces, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    if not special:  # BLIP reads as BERT does, between two marks
        words.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **names, additional_special_tokens=list(special))


def wild(network: torch.nn.Module) -> torch.nn.Module:
    """Far from its initialisation, so that its words depend on what it sees."""
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.4)
    return network.eval()


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    torch.manual_seed(0)
    reader = transformers.BlipProcessor(transformers.BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer())
    ids = {"bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2, "pad_token_id": 0}
    text = {"vocab_size": len(reader.tokenizer), "encoder_hidden_size": 32, "max_position_embeddings": 64} | SMALL | ids
    network = transformers.BlipForConditionalGeneration(
        transformers.BlipConfig(text_config=text, vision_config=EYES, projection_dim=32)
    )
    folder = tmp_path_factory.mktemp("blip")
    wild(network).save_pretrained(folder)
    reader.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def blip2(tmp_path_factory):
    torch.manual_seed(0)
    words = tokenizer("<image>")
    reader = transformers.Blip2Processor(
        transformers.BlipImageProcessor(size={"height": 32, "width": 32}), words, num_query_tokens=4
    )
    text = {"model_type": "opt", "vocab_size": len(words), "word_embed_proj_dim": 32, "ffn_dim": 64, "max_position_embeddings": 256}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0} | SMALL
    queries = {"vocab_size": len(words), "encoder_hidden_size": 32, "cross_attention_frequency": 1} | SMALL
    config = transformers.Blip2Config(
        vision_config=EYES,
        qformer_config=queries,
        text_config=text,
        num_query_tokens=4,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    folder = tmp_path_factory.mktemp("blip2")
    wild(transformers.Blip2ForConditionalGeneration(config)).save_pretrained(folder)
    reader.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["blip", "blip2"])
def test_captions_are_the_library_s(kind, request):
    """As transformers' documentation of the two classes captions an image, and different for different images."""
    folder = request.getfixturevalue(kind)
    reader = transformers.AutoProcessor.from_pretrained(folder)
    library = {"blip": transformers.BlipForConditionalGeneration, "blip2": transformers.Blip2ForConditionalGeneration}
    network = library[kind].from_pretrained(folder)
    captioner = Transformers(folder)
    said = [captioner.caption(photo) for photo in PHOTOS]
    for photo, text in zip(PHOTOS, said):
        ids = network.generate(**reader(images=Image.fromarray(photo), return_tensors="pt"), max_new_tokens=48)
        assert text == reader.batch_decode(ids, skip_special_tokens=True)[0].strip()
    assert said[0] != said[1]
    assert set(said[0].split()) <= set(WORDS)


def test_a_prompt_is_continued(blip):
    assert Transformers(blip, prompt="a red").caption(PHOTOS[0]).split()[:2] == ["a", "red"]
    assert Transformers(blip, prompt="a red").facts != Transformers(blip).facts
    with pytest.raises(CodecError, match=r"one image at a time"):
        Transformers(blip).ask("what is a dog", [])


def test_what_cannot_be_had_is_said(tmp_path):
    with pytest.raises(CodecError, match=r"cannot be had .* name a folder"):
        Transformers(tmp_path).caption(PHOTOS[0])


class Server:
    """Speaks OpenAI's chat protocol: says the mean of the image's pixels; the first request is refused as too many."""

    def __init__(self):
        self.requests, self.keys, self.status, self.answer = [], [], [429], None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append(body)
                outer.keys.append(self.headers.get("Authorization"))
                content = body["messages"][-1]["content"]
                pixels = [
                    np.array(Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].split(",")[1]))))
                    for part in content[:-1]
                ]
                said = f" mean\n{[round(float(array.mean()), 3) for array in pixels]} {content[-1]['text']}"
                status = outer.status.pop(0) if outer.status else 200
                data = json.dumps({"choices": [{"message": {"content": said}}]}).encode() if status == 200 else b"no"
                data = data if outer.answer is None else outer.answer
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                """Nothing is printed."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def close(self):
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def test_endpoint(server, monkeypatch):
    """The pixels arrive unharmed, after one try too many; answers come as one line."""
    monkeypatch.setenv("CAPTION_KEY", "secret")
    captioner = Endpoint(server.url, "llava", prompt="what is it", key="CAPTION_KEY", parameters={"top_p": 1})
    assert captioner.caption(PHOTOS[0]) == f"mean [{round(float(PHOTOS[0].mean()), 3)}] what is it"
    assert len(server.requests) == 2
    assert server.keys == ["Bearer secret"] * 2
    assert (server.requests[0]["model"], server.requests[0]["temperature"], server.requests[0]["top_p"]) == ("llava", 0, 1)
    assert captioner.ask("subtract") == "mean [] subtract"
    assert server.url not in json.dumps(captioner.facts)


@pytest.mark.parametrize(("status", "message"), [(401, "wants a key"), (400, "refused the request")])
def test_endpoint_refuses(server, status, message):
    server.status = [status]
    with pytest.raises(CodecError, match=message):
        Endpoint(server.url, "llava").caption(PHOTOS[0])


GARBAGE = [b"", b"\xff", b"<html>", b"[" * 100_000, b'{"choices": 3}', b" " * 2**23]


@pytest.mark.parametrize("answer", GARBAGE, ids=lambda answer: str(len(answer)))
def test_endpoint_that_answers_garbage(server, answer):
    server.answer, server.status = answer, []
    with pytest.raises(CodecError, match="does not speak OpenAI's chat protocol"):
        Endpoint(server.url, "llava").caption(PHOTOS[0])


def test_endpoint_is_not_there():
    with pytest.raises(CodecError, match=r"is the server up"):
        Endpoint("http://127.0.0.1:9/v1", "llava", retries=0).caption(PHOTOS[0])


def test_options_name_captioners(server, blip):
    assert captioner_of(None) is None
    assert captioner_of(lambda image: "a dog").caption(PHOTOS[0]) == "a dog"
    with pytest.raises(CodecError, match=r"gave int, not text"):
        captioner_of(len).caption(PHOTOS[0])
    served = captioner_of({"url": server.url, "model": "llava"})
    assert served is captioner_of({"model": "llava", "url": server.url})
    assert [served.caption(photo) for photo in (*PHOTOS, *PHOTOS)] == [served.caption(photo) for photo in PHOTOS] * 2
    assert len(server.requests) == 3  # one refused, then one an image
    assert captioner_of(blip).caption(PHOTOS[0]) == Transformers(blip).caption(PHOTOS[0])


def test_masked_captioner():
    dark = MaskedCaptioner(
        captioner_of(lambda image: str(image.sum())), type("Nothing", (), {"__call__": lambda *_: np.zeros((40, 50))})()
    )
    assert dark.caption(PHOTOS[0]) == "0"


@pytest.mark.filterwarnings("ignore:.*random")
def test_cadc_decodes_under_what_blip_sees_in_its_preview(blip):
    """The decoder's own caption, by a folder in transformers' layout; no bits for it."""
    from icmbench.codecs.cadc import PROMPT, Cadc

    options = {"profile": "tiny", "weights": "random", "device": "cpu"}
    codec = Cadc(captioner=blip, **options)
    data = codec.compress(PHOTOS[0])
    request = codec._request(data)
    hint = request.model.hint(*request.model.latents(request.container, data))
    preview = (request.model.preview(hint, request.decoding)[0].permute(1, 2, 0) * 255).round().byte().numpy()
    caption = Transformers(blip).caption(preview)
    assert caption and set(caption.split()) <= set(WORDS)
    assert codec.rate_breakdown(data)["text"] == 0
    worded = Cadc(prompt=f"{caption}, {PROMPT}", **options)
    assert np.array_equal(codec.decompress(data), worded.decompress(worded.compress(PHOTOS[0])))
