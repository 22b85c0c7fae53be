"""Captioners: transformers' own classes with random weights, a real server on loopback, and functions."""

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
from icmbench.codecs.diffusion.prompts.captioners import Endpoint, Transformers, build_captioner
from icmbench.codecs.diffusion.prompts.roi import MaskedCaptioner

WORDS = ["a", "the", "dog", "cat", "barn", "field", "bone", "with", "in", "of", "on", "red", "green", "small", "large"]
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {"image_size": 32, "patch_size": 16} | SMALL
PHOTOS = [np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8) for seed in range(2)]


def tokenizer(*special: str) -> transformers.PreTrainedTokenizerFast:
    pieces = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS, *special])}
    words = Tokenizer(models.WordLevel(pieces, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    if not special:  # BLIP's text, like BERT's, stands between two marks.
        words.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **names, additional_special_tokens=list(special))


def randomised(network: torch.nn.Module) -> torch.nn.Module:
    """The network with weights so large that its words depend on the image."""
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
        transformers.BlipConfig(text_config=text, vision_config=VISION, projection_dim=32)
    )
    folder = tmp_path_factory.mktemp("blip")
    randomised(network).save_pretrained(folder)
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
        vision_config=VISION,
        qformer_config=queries,
        text_config=text,
        num_query_tokens=4,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    folder = tmp_path_factory.mktemp("blip2")
    randomised(transformers.Blip2ForConditionalGeneration(config)).save_pretrained(folder)
    reader.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["blip", "blip2"])
def test_captions_equal_those_of_transformers(name, request):
    """Captions equal those made as transformers documents for the two classes, and differ between images."""
    folder = request.getfixturevalue(name)
    reader = transformers.AutoProcessor.from_pretrained(folder)
    library = {"blip": transformers.BlipForConditionalGeneration, "blip2": transformers.Blip2ForConditionalGeneration}
    network = library[name].from_pretrained(folder)
    captioner = Transformers(folder)
    captions = [captioner.caption(photo) for photo in PHOTOS]
    for photo, caption in zip(PHOTOS, captions):
        ids = network.generate(**reader(images=Image.fromarray(photo), return_tensors="pt"), max_new_tokens=48)
        assert caption == reader.batch_decode(ids, skip_special_tokens=True)[0].strip()
    assert captions[0] != captions[1]
    assert set(captions[0].split()) <= set(WORDS)


def test_a_prompt_is_continued(blip):
    assert Transformers(blip, prompt="a red").caption(PHOTOS[0]).split()[:2] == ["a", "red"]
    assert Transformers(blip, prompt="a red").facts != Transformers(blip).facts
    with pytest.raises(CodecError, match=r"one image at a time"):
        Transformers(blip).ask("what is a dog", [])


def test_missing_model_is_named(tmp_path):
    with pytest.raises(CodecError, match=r"cannot be had .* name a folder"):
        Transformers(tmp_path).caption(PHOTOS[0])


class Server:
    """A server of OpenAI's chat protocol that answers with the means of the images' pixels, and refuses the first request."""

    def __init__(self):
        self.requests, self.keys, self.statuses, self.answer = [], [], [429], None
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append(body)
                server.keys.append(self.headers.get("Authorization"))
                content = body["messages"][-1]["content"]
                pixels = [
                    np.array(Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].split(",")[1]))))
                    for part in content[:-1]
                ]
                text = f" mean\n{[round(float(array.mean()), 3) for array in pixels]} {content[-1]['text']}"
                status = server.statuses.pop(0) if server.statuses else 200
                data = json.dumps({"choices": [{"message": {"content": text}}]}).encode() if status == 200 else b"no"
                data = data if server.answer is None else server.answer
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                """Print nothing."""

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
    """A refused request is repeated, the pixels arrive unchanged, and the answer becomes one line."""
    monkeypatch.setenv("CAPTION_KEY", "secret")
    captioner = Endpoint(server.url, "llava", prompt="what is it", key="CAPTION_KEY", parameters={"top_p": 1})
    assert captioner.caption(PHOTOS[0]) == f"mean [{round(float(PHOTOS[0].mean()), 3)}] what is it"
    assert len(server.requests) == 2
    assert server.keys == ["Bearer secret"] * 2
    assert (server.requests[0]["model"], server.requests[0]["temperature"], server.requests[0]["top_p"]) == ("llava", 0, 1)
    assert captioner.ask("subtract") == "mean [] subtract"
    assert server.url in json.dumps(captioner.facts)
    assert captioner.facts != Endpoint("http://elsewhere:1/v1", "llava", prompt="what is it", parameters={"top_p": 1}).facts


@pytest.mark.parametrize(("status", "message"), [(401, "wants a key"), (400, "refused the request")])
def test_endpoint_that_refuses(server, status, message):
    server.statuses = [status]
    with pytest.raises(CodecError, match=message):
        Endpoint(server.url, "llava").caption(PHOTOS[0])


GARBAGE = [b"", b"\xff", b"<html>", b"[" * 100_000, b'{"choices": 3}', b" " * 2**23]


@pytest.mark.parametrize("answer", GARBAGE, ids=lambda answer: str(len(answer)))
def test_endpoint_that_answers_garbage(server, answer):
    server.answer, server.statuses = answer, []
    with pytest.raises(CodecError, match="does not speak OpenAI's chat protocol"):
        Endpoint(server.url, "llava").caption(PHOTOS[0])


def test_endpoint_without_a_server():
    with pytest.raises(CodecError, match=r"is the server up"):
        Endpoint("http://127.0.0.1:9/v1", "llava", retries=0).caption(PHOTOS[0])


def test_options_name_captioners(server, blip):
    assert build_captioner(None) is None
    assert build_captioner(lambda image: "a dog").caption(PHOTOS[0]) == "a dog"
    with pytest.raises(CodecError, match=r"gave int, not text"):
        build_captioner(len).caption(PHOTOS[0])
    served = build_captioner({"url": server.url, "model": "llava"})
    assert served is build_captioner({"model": "llava", "url": server.url})
    assert [served.caption(photo) for photo in (*PHOTOS, *PHOTOS)] == [served.caption(photo) for photo in PHOTOS] * 2
    assert len(server.requests) == 3  # One that was refused, and one per image.
    assert build_captioner(blip).caption(PHOTOS[0]) == Transformers(blip).caption(PHOTOS[0])


def test_masked_captioner_sees_only_the_region_of_interest():
    masked = MaskedCaptioner(build_captioner(lambda image: str(image.sum())), lambda image: np.zeros((40, 50)))
    assert masked.caption(PHOTOS[0]) == "0"


@pytest.mark.filterwarnings("ignore:.*random")
def test_cadc_decodes_under_a_caption_of_its_preview(blip):
    """The decoder captions its preview by BLIP, from a folder in transformers' layout. The caption costs no bits."""
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
    prompted = Cadc(prompt=f"{caption}, {PROMPT}", **options)
    assert np.array_equal(codec.decompress(data), prompted.decompress(prompted.compress(PHOTOS[0])))
