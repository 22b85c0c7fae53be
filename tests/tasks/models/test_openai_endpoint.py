"""The adapter for endpoints against a real HTTP server on this machine, which keeps to the protocol or breaks it."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import resource
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("urllib3")

from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.openai_endpoint import OpenAIEndpoint


class Server:
    """Answers each request with the image's shape and mean and the prompt.

    Attributes:
        requests: body of each request.
        headers: headers of each request.
        times: when each request came in.
        troubles: function to call first, by the number of the request, -1 for all others. The usual answer follows if it returns
            False.
        pause: seconds before an answer.
        in_flight: number of requests that wait for an answer.
        most_in_flight: highest value of `in_flight` so far.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.troubles: dict[int, Callable[[BaseHTTPRequestHandler], bool]] = {}
        self.pause = 0.0
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    number = len(server.requests)
                    server.requests.append(body)
                    server.headers.append(dict(self.headers))
                    server.times.append(time.monotonic())
                    server.in_flight += 1
                    server.most_in_flight = max(server.most_in_flight, server.in_flight)
                try:
                    time.sleep(server.pause)
                    trouble = server.troubles.get(number) or server.troubles.get(-1)
                    if self.path != "/v1/chat/completions":
                        reply(self, 404, b'{"error": {"message": "no such route"}}')
                    elif trouble is None or not trouble(self):
                        reply(self, 200, server.completion(body))
                finally:
                    with server.lock:
                        server.in_flight -= 1

            def log_message(self, *_: Any) -> None:
                """Print nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    @staticmethod
    def completion(body: dict[str, Any]) -> bytes:
        image, prompt = body["messages"][-1]["content"]
        text = answer(decode_image(image["image_url"]["url"]), prompt["text"])
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return json.dumps({"id": "1", "object": "chat.completion", "model": body["model"], "choices": [choice]}).encode()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def answer(image: Any, prompt: str) -> str:
    return f"{image.shape} {image.mean():.6f} {prompt}"


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> bool:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)
    return True


def break_off(handler: BaseHTTPRequestHandler) -> bool:
    """Announce 1000 bytes, send a few and close the connection."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True
    return True


def stream_blanks(handler: BaseHTTPRequestHandler) -> bool:
    """Send 256 MiB of blanks as a stream without a length."""
    handler.send_response(200)
    handler.end_headers()
    handler.close_connection = True
    with contextlib.suppress(OSError):
        for _ in range(256):
            handler.wfile.write(b" " * 2**20)
    return True


def send_gzip_bomb(handler: BaseHTTPRequestHandler) -> bool:
    """Send about one MiB that decompresses to 256 MiB of zeros."""
    compressor = zlib.compressobj(1, wbits=31)
    body = b"".join([compressor.compress(bytes(2**20)) for _ in range(256)]) + compressor.flush()
    with contextlib.suppress(OSError):
        reply(handler, 200, body, Content_Encoding="gzip")
    return True


def decode_image(url: str) -> Any:
    assert url.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    instance = Server()
    yield instance
    instance.close()


def endpoint(server: Server, **options: Any) -> OpenAIEndpoint:
    return OpenAIEndpoint(server.url, "some/model", "norm1000", **{"backoff": 0.01, "retries": 3, "timeout": 10.0, **options})


IMAGES = [np.random.default_rng(seed).integers(0, 256, (5 + seed, 9, 3), np.uint8) for seed in range(12)]
PROMPTS = [f"prompt {index}" for index in range(12)]
ANSWERS = [answer(image, prompt) for image, prompt in zip(IMAGES, PROMPTS)]


def test_the_request_holds_options_messages_and_the_exact_pixels(server: Server) -> None:
    model = endpoint(server, system="Be brief.", max_tokens=7, parameters={"top_p": 1.0}, concurrency=1)
    assert model.answer(IMAGES[:1], ["Where is it?"]) == [answer(IMAGES[0], "Where is it?")]
    (request,) = server.requests
    assert {key: request[key] for key in ("model", "temperature", "max_tokens", "seed", "top_p")} == {
        "model": "some/model", "temperature": 0.0, "max_tokens": 7, "seed": 0, "top_p": 1.0,
    }  # fmt: skip
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}
    image, text = request["messages"][1]["content"]
    assert (image["type"], text) == ("image_url", {"type": "text", "text": "Where is it?"})
    np.testing.assert_array_equal(decode_image(image["image_url"]["url"]), IMAGES[0])
    assert "Authorization" not in server.headers[0]


def test_the_key_is_sent_and_kept_out_of_the_fingerprint(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret-key")
    model = endpoint(server, api_key_variable="MY_KEY")
    model.answer(IMAGES[:1], PROMPTS[:1])
    assert server.headers[0]["Authorization"] == "Bearer secret-key"
    assert "secret" not in model.fingerprint


def test_requests_run_side_by_side_and_answers_keep_their_order(server: Server) -> None:
    server.pause = 0.3
    assert endpoint(server, concurrency=4).answer(IMAGES, PROMPTS) == ANSWERS
    assert server.most_in_flight == 4


@pytest.mark.parametrize(
    "trouble",
    [
        lambda handler: reply(handler, 429, b"slow down"),
        lambda handler: reply(handler, 500, b"oops"),
        lambda handler: reply(handler, 503, b"<html>loading</html>"),
        break_off,
        lambda handler: time.sleep(0.6) is not None,  # Longer than the timeout, so the client no longer hears the answer.
    ],
    ids=["429", "500", "503", "broken off", "timeout"],
)
def test_passing_troubles_are_survived(server: Server, trouble: Any) -> None:
    server.troubles = {0: trouble, 1: trouble, 4: trouble}
    model = endpoint(server, timeout=0.3, concurrency=2)
    assert model.answer(IMAGES[:4], PROMPTS[:4]) == ANSWERS[:4]
    assert len(server.requests) == 7


def test_the_pause_of_retry_after_is_kept(server: Server) -> None:
    server.troubles = {0: lambda handler: reply(handler, 429, b"later", Retry_After="1")}
    assert endpoint(server).answer(IMAGES[:1], PROMPTS[:1]) == ANSWERS[:1]
    assert server.times[1] - server.times[0] >= 1


def test_pauses_grow(server: Server) -> None:
    server.troubles = {number: lambda handler: reply(handler, 500, b"oops") for number in range(3)}
    endpoint(server, backoff=0.1).answer(IMAGES[:1], PROMPTS[:1])
    pauses = np.diff(server.times)
    assert len(pauses) == 3 and pauses[1] >= 0.2 and pauses[2] >= 0.4


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (500, b"oops", r"refused the request for 'some/model' \(500\): oops"),
        (400, b'{"error": {"message": "image too large"}}', r"refused .* \(400\): .*image too large"),
        (404, b'{"error": {"message": "model not found"}}', r"refused .* \(404\): .*model not found"),
        (401, b"{}", r"wants a key \(401\); put it into the environment variable OPENAI_API_KEY"),
        (200, b"<html>a gateway</html>", r"does not speak OpenAI's chat protocol; it said: <html>"),
        (200, b"[" * 100_000, "does not speak OpenAI's chat protocol"),
        (200, b"", "does not speak OpenAI's chat protocol"),
        (200, b'{"choices": []}', "does not speak OpenAI's chat protocol"),
        (200, b'["\xff"]', "does not speak OpenAI's chat protocol"),
    ],
)
def test_lasting_troubles_are_reported_in_one_sentence(server: Server, status: int, body: bytes, message: str) -> None:
    server.troubles = {-1: lambda handler: reply(handler, status, body)}
    with pytest.raises(ModelError, match=message):
        endpoint(server).answer(IMAGES[:1], PROMPTS[:1])
    assert len(server.requests) == (4 if status == 500 else 1), "only a trouble that may pass is worth another try"


@pytest.mark.parametrize("trouble", [stream_blanks, send_gzip_bomb])
def test_a_huge_answer_is_not_read_to_its_end(server: Server, trouble: Any) -> None:
    server.troubles = {-1: trouble}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match="does not speak OpenAI's chat protocol"):
        endpoint(server).answer(IMAGES[:1], PROMPTS[:1])
    assert len(server.requests) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024, "less than 100 MiB more memory"


def test_a_silent_an_absent_and_an_impossible_server_are_reported(server: Server) -> None:
    server.troubles = {-1: lambda handler: time.sleep(0.5) is not None}
    with pytest.raises(ModelError, match=r"gave no answer in 2 tries .*is the server up"):
        endpoint(server, timeout=0.1, retries=1).answer(IMAGES[:1], PROMPTS[:1])
    with pytest.raises(ModelError, match="gave no answer in 1 tries"):
        OpenAIEndpoint("http://127.0.0.1:9/v1", "m", "norm1", retries=0).answer(IMAGES[:1], PROMPTS[:1])
    with pytest.raises(ModelError, match="url: 'localhost:8000' is no http"):
        OpenAIEndpoint("localhost:8000", "m", "norm1")


def test_a_refusal_of_the_model_is_an_empty_answer(server: Server) -> None:
    body = json.dumps({"choices": [{"message": {"content": None, "refusal": "no"}}]}).encode()
    server.troubles = {-1: lambda handler: reply(handler, 200, body)}
    assert endpoint(server).answer(IMAGES[:1], PROMPTS[:1]) == [""]


def test_the_fingerprint_holds_what_decides_an_answer(server: Server) -> None:
    default = endpoint(server)
    assert default.fingerprint == endpoint(server, concurrency=1, timeout=1.0, box_choice="first").fingerprint
    assert default.fingerprint != OpenAIEndpoint("http://elsewhere:1/v1", "some/model", "norm1000").fingerprint
    for change in ({"temperature": 0.5}, {"seed": 1}, {"max_tokens": 9}, {"revision": "awq"}, {"parameters": {"top_k": 1}}):
        assert endpoint(server, **change).fingerprint != default.fingerprint


@pytest.mark.parametrize("size", [(480, 640), (427, 640), (28, 28), (10, 12), (31, 1200), (13, 300), (5000, 4000), (14, 42)])
def test_the_resized_size_is_qwens(size: tuple[int, int]) -> None:
    smart_resize = pytest.importorskip("transformers.models.qwen2_vl.image_processing_qwen2_vl").smart_resize
    for bounds in ((56 * 56, 28 * 28 * 16384), (256 * 28 * 28, 1280 * 28 * 28)):
        model = OpenAIEndpoint("http://x/v1", "m", "absolute_resized", 28, *bounds)
        assert model.resized_size(*size) == smart_resize(*size, 28, *bounds)
