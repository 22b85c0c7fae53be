"""A server in OpenAI's chat protocol, asked so that pictures and keys reach no other host and no answer takes forever.

    body + key -> POST -> redirect? only within the same server -> answer, whole within its time -> text, without the reasoning

`tasks/models/chat_server.py` is a copy of this module, as neither folder may import the other; a test keeps them equal.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from icmbench.codecs.base import CodecError as ServerError

RETRIED_STATUSES = (408, 409, 429, 500, 502, 503, 504)  # HTTP statuses of troubles that may pass.
REDIRECTS = (301, 302, 307, 308)  # HTTP statuses after which the same request is sent to another address.
MAX_REDIRECTS = 5
CONNECT_SECONDS = 10.0
MAX_PAUSE_SECONDS = 60.0
MAX_ANSWER_BYTES = 2**22

# Names of options that hold a secret, in snake case, and texts that look like one whatever their name is.
_SECRET_NAME = re.compile(
    r"(.*_)?(api_?key|access_?key|private_?key|subscription_key|authori[sz]ation|auth|bearer|cookie|password|passwd|passphrase|pwd|"
    r"secret(_key)?|credentials?|signature|sig|key)|((x|api|auth|access|bearer|refresh|id|hf|session|security|user)_)*token"
)
_SECRET_TEXT = re.compile(r"(?i:bearer|basic)\s+\S+|(sk|pk|hf|gsk|xai|ghp|gho|glpat|AIza)[-_]?[A-Za-z0-9_-]{16,}")


class ChatServer:
    """A server in OpenAI's chat protocol. Requests may be sent from several threads.

    Args:
        url: address up to the version, such as http://localhost:8000/v1.
        parameters: options of the requests, of which none may hold a key.
        role: what stands before the address in messages, such as "the captioner at ".
        key_option: name of the option that holds `key_variable`, for messages.
        key_variable: name of the environment variable that holds the key; if it is unset, no key is sent.
        timeout: seconds from a request to the end of its answer.
        retries: how often a failed request is repeated.
        backoff: scale of the pauses between tries, in seconds.
        connections: number of connections that are kept.

    Attributes:
        url: the address of the requests.

    Raises:
        ServerError: the url is no http or https address, or it or `parameters` hold a key, or `key_variable` is one.
    """

    def __init__(
        self,
        url: str,
        parameters: Mapping[str, Any],
        *,
        role: str,
        key_option: str,
        key_variable: str,
        timeout: float,
        retries: int,
        backoff: float,
        connections: int,
    ) -> None:
        remedy = f"put it into an environment variable and name that in `{key_option}`"
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key_variable) or _SECRET_TEXT.fullmatch(key_variable):
            raise ServerError(f"{key_option}: this is a key or no name of an environment variable; {remedy}")
        address = _checked_address(url, remedy)
        _check_parameters(parameters, remedy)
        self.url = address._replace(path=f"{address.path.rstrip('/')}/chat/completions").geturl()
        self.name, self._key_variable = f"{role}{self.url}", key_variable
        self._timeout, self._retries = timeout, retries
        self._client = _TimedClient(self.url, timeout, retries, backoff, connections)

    def ask(self, body: Mapping[str, Any]) -> str:
        """The text of the answer to a request.

        Args:
            body: the request as JSON, with `model` and `messages`.

        Returns:
            The answer's text without what the server declares as reasoning; empty if the model refused to answer.

        Raises:
            ServerError: every try failed, the server refused or redirected the request, or it answered in another protocol.
        """
        import urllib3

        key = os.environ.get(self._key_variable, "").strip()
        if not key.isprintable() or not key.isascii():
            raise ServerError(f"the environment variable {self._key_variable} holds characters that no key has; set it anew")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # urllib3 repeats a request whose connection or status fails, but not one whose answer breaks off.
        for retries_left in range(self._retries, -1, -1):
            try:
                status, answer = self._post(body, headers)
                return self._read(status, answer, body, key)
            except urllib3.exceptions.HTTPError as error:
                if retries_left and not isinstance(error, urllib3.exceptions.MaxRetryError):
                    continue
                late = f"no whole answer within {self._timeout:g} s" if self._client.is_late else None
                reason = late or getattr(error, "reason", None) or error
                raise ServerError(
                    f"{self.name} gave no answer in {self._retries + 1} tries ({reason}); is the server up?"
                ) from error
        raise AssertionError("unreachable")

    def _post(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[int, bytes]:
        """Send a request, follow its redirects, and return the status and the answer."""
        url = self.url
        for _ in range(MAX_REDIRECTS + 1):
            status, location, answer = self._client.post(url, body, headers)
            if status not in REDIRECTS or location is None:
                return status, answer
            url = self._redirected(url, location)
        raise ServerError(f"{self.name} redirects the request more than {MAX_REDIRECTS} times; give the final address as `url`")

    def _redirected(self, url: str, location: str) -> str:
        """The address that a redirect names.

        Raises:
            ServerError: it belongs to another server, which must not be sent the picture and the key.
        """
        try:
            target = urljoin(url, location)
            origins = [_origin(urlsplit(address)) for address in (url, target)]
        except ValueError:
            origins = [("", "", 0), ("", "", 1)]
        if origins[0] != origins[1]:
            host = f"{origins[1][0]}://{origins[1][1]}:{origins[1][2]}"
            raise ServerError(
                f"{self.name} redirects the request to another server, {host}, which is not sent the picture and the key: give its "
                "address as `url` if you trust it"
            )
        return target

    def _read(self, status: int, answer: bytes, body: Mapping[str, Any], key: str) -> str:
        """The text of an answer; empty if the model refused to answer."""
        excerpt = answer.decode(errors="replace")
        excerpt = (excerpt.replace(key, "<key>") if key else excerpt)[:200]
        if status in (401, 403):
            raise ServerError(f"{self.name} wants a key ({status}); put it into the environment variable {self._key_variable}")
        if status != 200:
            raise ServerError(f"{self.name} refused the request for {body.get('model')!r} ({status}): {excerpt}")
        try:
            content = json.loads(answer)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise ServerError(f"{self.name} does not speak OpenAI's chat protocol; it said: {excerpt}") from error
        if isinstance(content, list):  # Parts, of which the ones of another type hold what the model thinks.
            content = "".join(
                str(part.get("text", "")) for part in content if isinstance(part, dict) and part.get("type") == "text"
            )
        return content if isinstance(content, str) else ""


class _TimedClient:
    """Sends requests whose answers are whole within a time, over connections that are kept.

    Args:
        url: the address, by whose scheme and host the environment names a proxy.
        timeout: seconds from a request to the end of its answer.
        retries: how often a request is repeated whose connection fails, or whose status is one of RETRIED_STATUSES.
        backoff: scale of the pauses between tries, in seconds.
        connections: number of connections that are kept.
    """

    def __init__(self, url: str, timeout: float, retries: int, backoff: float, connections: int) -> None:
        self._address = urlsplit(url)
        self._timeout, self._retries, self._backoff, self._connections = timeout, retries, backoff, connections
        self._thread = threading.local()  # Its `deadline` belongs to the request that the thread waits for.

    @property
    def is_late(self) -> bool:
        """Whether this thread's last request was cut off."""
        deadline = getattr(self._thread, "deadline", None)
        return deadline is not None and deadline.is_past

    def post(self, url: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[int, str | None, bytes]:
        """Send a request to an address of the same server.

        Returns:
            The status, the address that a redirect names, and at most MAX_ANSWER_BYTES of the answer.

        Raises:
            urllib3.exceptions.HTTPError: every try failed, or the answer was cut off.
        """
        import urllib3

        self._thread.deadline = None
        try:
            response = self._pool.request("POST", url, json=body, headers=headers, preload_content=False, redirect=False)
            try:
                answer = response.read(MAX_ANSWER_BYTES, decode_content=True)
            finally:
                response.close()
        finally:
            if self._thread.deadline is not None:
                self._thread.deadline.cancel()
        if self.is_late:  # The end of an answer without a length looks like this too.
            raise urllib3.exceptions.ProtocolError("the answer was cut off")
        return response.status, response.headers.get("Location"), answer

    @cached_property
    def _pool(self) -> Any:
        """urllib3's connections, with repetitions of failed requests, and through the proxy that the environment names."""
        import urllib3

        retry = urllib3.Retry(
            total=self._retries,
            allowed_methods=None,  # Repeats POST requests too, which is safe because an answer changes nothing on the server.
            status_forcelist=RETRIED_STATUSES,
            raise_on_status=False,
            backoff_factor=self._backoff,
            backoff_max=MAX_PAUSE_SECONDS,
            backoff_jitter=self._backoff / 4,
        )
        options: dict[str, Any] = {
            "retries": retry,
            "timeout": urllib3.Timeout(connect=CONNECT_SECONDS, read=self._timeout),
            "maxsize": self._connections,
        }
        proxy = None if proxy_bypass(self._address.hostname or "") else getproxies().get(self._address.scheme)
        pool = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
        pool.pool_classes_by_scheme = self._pools()
        return pool

    def _pools(self) -> dict[str, Any]:
        """urllib3's pools by scheme, with connections that start a deadline at each request."""
        import urllib3

        thread, timeout = self._thread, self._timeout

        def bounded(connection_class: Any) -> Any:
            class Bounded(connection_class):  # type: ignore[misc]
                def request(self, *arguments: Any, **options: Any) -> None:
                    if thread.deadline is not None:  # Of the try before.
                        thread.deadline.cancel()
                    thread.deadline = _Deadline(timeout, self)
                    super().request(*arguments, **options)
                    thread.deadline.watch(self.sock)

            return Bounded

        pools: dict[str, Any] = {"http": urllib3.HTTPConnectionPool, "https": urllib3.HTTPSConnectionPool}
        return {name: type(pool.__name__, (pool,), {"ConnectionCls": bounded(pool.ConnectionCls)}) for name, pool in pools.items()}


class _Deadline:
    """Cuts a connection off when its answer takes too long, however slowly the bytes drip in.

    A time-out of a socket bounds each wait for data, so that one byte a second would keep a request alive for ever.

    Args:
        seconds: how long the request and its answer may take.
        connection: urllib3's connection, which may be connected later.
    """

    def __init__(self, seconds: float, connection: Any) -> None:
        self.is_past = False
        self._connection, self._socket = connection, None
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True
        self._timer.start()

    def watch(self, connected: Any) -> None:
        """Name the socket, which the connection forgets when the server announces that it will close it."""
        self._socket = connected

    def cancel(self) -> None:
        """The answer is complete or given up."""
        self._timer.cancel()

    def _cut(self) -> None:
        self.is_past = True
        connected = self._socket or self._connection.sock
        with suppress(OSError, AttributeError, TypeError):
            # SSLSocket.shutdown would take the encryption away under the reading thread.
            socket.socket.shutdown(connected, socket.SHUT_RDWR)


def _checked_address(url: str, remedy: str) -> SplitResult:
    """The parts of an address.

    Raises:
        ServerError: it is no http or https address, or holds a user name, a password or a key.
    """
    try:
        address = urlsplit(url)
        host, _ = address.hostname, address.port
    except ValueError as error:
        raise ServerError(f"url: this is no http or https address ({error}); write one such as http://localhost:8000/v1") from None
    if "@" in address.netloc or ("@" in url and address.scheme not in ("http", "https")):
        raise ServerError(f"url: the address holds a user name or a password, which would be written down; {remedy}")
    pairs = [pair.partition("=") for pair in re.split("[&;]", f"{address.query}&{address.fragment}")]
    if any(is_secret_name(name) or _SECRET_TEXT.fullmatch(value) for name, _, value in pairs):
        raise ServerError(f"url: the address holds a key, which would be written down; {remedy}")
    if address.scheme not in ("http", "https") or not host:
        raise ServerError(f"url: {url!r} is no http or https address, such as http://localhost:8000/v1")
    return address


def _check_parameters(parameters: Mapping[str, Any], remedy: str, where: str = "parameters") -> None:
    """Refuse options of a request that hold a key, because options are written into fingerprints and result files.

    Raises:
        ServerError: an option, at any depth, has the name or the look of a key.
    """
    for name, value in parameters.items():
        entries = value if isinstance(value, (list, tuple)) else [value]
        looks_secret = any(isinstance(entry, str) and _SECRET_TEXT.fullmatch(entry) for entry in entries)
        if looks_secret or (is_secret_name(str(name)) and value is not None):
            raise ServerError(f"{where}.{name}: this is a key, which would be written down; {remedy}")
        for entry in entries:
            if isinstance(entry, Mapping):
                _check_parameters(entry, remedy, f"{where}.{name}")


def is_secret_name(name: str) -> bool:
    """Whether an option of this name holds a key or a password.

    Example:
        >>> [is_secret_name(name) for name in ("api_key", "X-Api-Key", "accessToken", "max_tokens", "stop_token_ids", "top_k")]
        [True, True, True, False, False, False]
    """
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").lower()
    return _SECRET_NAME.fullmatch(snake) is not None


def _origin(address: SplitResult) -> tuple[str, str, int]:
    return address.scheme, address.hostname or "", address.port or {"https": 443}.get(address.scheme, 80)
