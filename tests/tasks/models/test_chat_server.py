"""What leaves the machine and how long an answer takes, against servers on this machine that redirect, drip or hold a key."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("urllib3")

from icmbench.codecs.base import CodecError
from icmbench.codecs.diffusion.prompts.captioners import Endpoint
from icmbench.tasks.models.chat_server import is_secret_name
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.openai_endpoint import OpenAIEndpoint

ROOT = Path(__file__).parents[3]
IMAGE = np.zeros((4, 5, 3), np.uint8)
Handle = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """A server on this machine that answers each POST by `handle`.

    Attributes:
        requests: path and body of each request.
    """

    def __init__(self, handle: Handle) -> None:
        self.requests: list[tuple[str, bytes]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server.requests.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
                handle(self)

            def do_GET(self) -> None:
                server.requests.append((self.path, b""))
                handle(self)

            def log_message(self, *_: Any) -> None:
                """Print nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.port = self._http.server_port
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Handle], Server]]:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789abcdefghij")
    servers: list[Server] = []

    def start(handle: Handle) -> Server:
        servers.append(Server(handle))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content_Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def message(**entries: Any) -> bytes:
    return json.dumps({"choices": [{"message": entries}]}).encode()


def model(url: str, **options: Any) -> OpenAIEndpoint:
    return OpenAIEndpoint(url, "m", "norm1000", **{"backoff": 0.01, "retries": 1, "timeout": 10.0, **options})


def ask_both(url: str, **options: Any) -> list[str]:
    """What the task model and the captioner raise or answer."""
    said = []
    for ask in (
        lambda: model(url, **options).answer([IMAGE], ["what?"])[0],
        lambda: Endpoint(url, "m", **{"retries": 1, "timeout": 10.0, **options}).caption(IMAGE),
    ):
        try:
            said.append(ask())
        except (ModelError, CodecError) as error:
            said.append(f"refused: {error}")
    return said


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_redirect_to_another_server_is_refused(serve: Any, status: int, host: str) -> None:
    other = serve(lambda handler: reply(handler, 200, message(content="mine now")))
    first = serve(lambda handler: reply(handler, status, b"", Location=f"http://{host}:{other.port}/v1/chat/completions"))
    for said in ask_both(first.url):
        assert said.startswith("refused: ") and f"another server, http://{host}:{other.port}" in said and "give its address" in said
    assert other.requests == []


@pytest.mark.parametrize("location", ["//evil.example/v1", "https://127.0.0.1/v1", "http://[::1", "ftp://127.0.0.1/v1"])
def test_every_way_to_name_another_server_is_refused(serve: Any, location: str) -> None:
    server = serve(lambda handler: reply(handler, 307, b"", Location=location))
    assert all("redirects the request to another server" in said for said in ask_both(server.url))
    assert len(server.requests) == 2


def test_a_redirect_within_the_server_is_followed(serve: Any) -> None:
    def handle(handler: BaseHTTPRequestHandler) -> None:
        if handler.path == "/v2/chat":
            reply(handler, 200, message(content="here"))
        else:
            reply(handler, 307, b"", Location="/v2/chat")

    server = serve(handle)
    assert ask_both(server.url) == ["here", "here"]
    assert [path for path, _ in server.requests] == ["/v1/chat/completions", "/v2/chat"] * 2
    assert server.requests[0][1] == server.requests[1][1]
    loop = serve(lambda handler: reply(handler, 307, b"", Location="/v1/chat/completions"))
    assert all("more than 5 times" in said for said in ask_both(loop.url))


def drip_body(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    drip(handler, b" " * 100_000)


def drip_body_without_a_length(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    drip(handler, message(content="cut off?") + b" " * 100_000)


def drip_headers(handler: BaseHTTPRequestHandler) -> None:
    drip(handler, b"HTTP/1.1 200 OK\r\n" + b"X-Long: 1\r\n" * 10_000)


def drip(handler: BaseHTTPRequestHandler, data: bytes) -> None:
    try:
        for byte in data:
            handler.wfile.write(bytes([byte]))
            time.sleep(0.02)
    except OSError:
        pass


@pytest.mark.parametrize("handle", [drip_body, drip_body_without_a_length, drip_headers])
def test_a_server_that_drips_is_cut_off(serve: Any, handle: Handle) -> None:
    """Without a bound on the whole answer this would take half an hour."""
    server = serve(handle)
    for said in ask_both(server.url, timeout=0.4):
        assert "gave no answer in 2 tries (no whole answer within 0.4 s)" in said
    assert len(server.requests) == 4


def test_an_answer_in_time_is_not_cut_off_later(serve: Any) -> None:
    server = serve(lambda handler: reply(handler, 200, message(content="quick")))
    asked = model(server.url, timeout=0.5, concurrency=1)
    for _ in range(4):
        assert asked.answer([IMAGE], ["what?"]) == ["quick"]
        time.sleep(0.3)
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hunter2@127.0.0.1:9/v1",
        "http://hunter2@127.0.0.1:9/v1",
        "user:hunter2@127.0.0.1/v1",
        "http://127.0.0.1:9/v1?api_key=hunter2",
        "http://127.0.0.1:9/v1?version=1&access-token=hunter2",
        "http://127.0.0.1:9/v1?x=sk-hunter2hunter2hunter2",
        "http://127.0.0.1:9/v1#key=hunter2",
    ],
)
def test_credentials_in_an_address_are_refused_without_being_repeated(url: str) -> None:
    for said, option in zip(ask_both(url), ("api_key_variable", "key"), strict=True):
        assert said.startswith("refused: url: the address holds") and f"name that in `{option}`" in said and "hunter2" not in said


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://x/v1", "http://", "http:///v1", "http://[::1/v1", "http://x:99999/v1", ""]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    assert all(said.startswith("refused: url: ") and "http://localhost:8000/v1" in said for said in ask_both(url))


@pytest.mark.parametrize(
    "parameters",
    [
        {"api_key": "hunter2"},
        {"Authorization": "hunter2"},
        {"extra_headers": {"X-API-Key": "hunter2"}},
        {"tools": [{"server": {"auth_token": "hunter2"}}]},
        {"user": "sk-hunter2hunter2hunter2"},
        {"stop": ["Bearer hunter2"]},
        {"clientSecret": "hunter2"},
        {"token": "hunter2"},
        {"password": "hunter2"},
    ],
)
def test_keys_in_parameters_are_refused_without_being_repeated(parameters: dict[str, Any]) -> None:
    for said in ask_both("http://127.0.0.1:9/v1", parameters=parameters):
        assert said.startswith("refused: parameters.") and "environment variable" in said and "hunter2" not in said


@pytest.mark.parametrize(
    "name",
    [
        "max_tokens",
        "stop_token_ids",
        "skip_special_tokens",
        "min_tokens",
        "logit_bias",
        "top_k",
        "chat_template_kwargs",
        "repetition_penalty",
        "max_completion_tokens",
        "bad_words_token_ids",
        "eos_token",
        "prompt_cache_retention",
        "keyframes",
        "response_format",
        "authors",
    ],
)
def test_common_options_are_no_secrets(name: str) -> None:
    assert not is_secret_name(name)
    model("http://127.0.0.1:9/v1", parameters={name: 1})


def test_a_key_in_place_of_its_variables_name_is_refused() -> None:
    for key in ("sk-hunter2hunter2hunter2", "hf_hunter2hunter2hunter2", "hunter 2", ""):
        with pytest.raises(ModelError, match="no name of an environment variable") as raised:
            model("http://127.0.0.1:9/v1", api_key_variable=key)
        assert "hunter" not in str(raised.value)


def test_a_server_that_repeats_the_key_does_not_reveal_it(serve: Any) -> None:
    server = serve(lambda handler: reply(handler, 400, f"bad key {handler.headers['Authorization']}".encode()))
    assert all("bad key Bearer <key>" in said and "sk-" not in said for said in ask_both(server.url))


def test_a_key_that_no_header_holds_is_not_repeated(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(lambda handler: reply(handler, 200, message(content="fine")))
    monkeypatch.setenv("OPENAI_API_KEY", "hun\nter2")
    assert all("OPENAI_API_KEY holds characters" in said and "ter2" not in said for said in ask_both(server.url))
    monkeypatch.setenv("OPENAI_API_KEY", "hunter2\n")
    assert ask_both(server.url) == ["fine", "fine"]


@pytest.mark.parametrize(
    ("entries", "answer"),
    [
        ({"content": "a cat", "reasoning_content": "a dog?"}, "a cat"),
        ({"content": None, "reasoning": "a dog?"}, ""),
        ({"content": None, "reasoning_content": "a dog?"}, ""),
        (
            {"content": [{"type": "thinking", "text": "a dog?"}, {"type": "text", "text": "a "}, {"type": "text", "text": "cat"}]},
            "a cat",
        ),
    ],
)
def test_reasoning_is_no_answer(serve: Any, entries: dict[str, Any], answer: str) -> None:
    server = serve(lambda handler: reply(handler, 200, message(**entries)))
    assert ask_both(server.url) == [answer, answer]


def test_a_captioner_that_thinks_writes_only_its_caption(serve: Any) -> None:
    server = serve(lambda handler: reply(handler, 200, message(content="<think>a dog?</think>\na  cat")))
    assert Endpoint(server.url, "m").caption(IMAGE) == "a cat"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("tasks/models/chat_server.py", "codecs/diffusion/prompts/chat_server.py"),
        ("tasks/answers.py", "codecs/diffusion/prompts/answers.py"),
    ],
)
def test_the_two_copies_are_equal(first: str, second: str) -> None:
    lines = [(ROOT / path).read_text().splitlines() for path in (first, second)]
    differing = [pair for pair in zip(*lines, strict=True) if pair[0] != pair[1]]
    assert all("copy of this module" in pair[0] or "as ServerError" in pair[0] for pair in differing)
