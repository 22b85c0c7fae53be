"""What looks like a credential: refused where it enters, and blacked out in whatever is written or printed.

Run folders, reports and logs are shared; a password that enters them is published. Recognised are values of keys such as `api_key`
or `password`, URLs with a password or a key among their parameters, command-line options such as `--token`, and the forms in which
well-known services write their keys. Names of environment variables (`api_key_variable: OPENAI_API_KEY`) are none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

BLACK = "[hidden]"  # Stands for a credential in what is written.
REMEDY = "put it into an environment variable, and name that variable where the plug-in asks for one"

_NAME = (
    r"(?:[a-z0-9]+[-_])*(?:api[-_]?key|access[-_]?key(?:[-_]id)?|secret[-_]?key|private[-_]?key|subscription[-_]?key|password|passwd|"
    r"passphrase|pwd|secret|token|authorization|bearer|credentials?|auth|cookie)"
)
_KEY = re.compile(_NAME, re.IGNORECASE)
# Parameters of a URL: as above, and those of signed addresses.
_PARAMETER = rf"(?:{_NAME}|key|sig|signature|x-amz-[a-z-]+|x-goog-[a-z-]+)"
_TEXTS = [
    # https://user:password@host, and also https://token@host; `Path` writes one slash for the two.
    re.compile(r"(?P<before>[a-z][a-z0-9+.-]{0,20}:/{1,2})(?P<secret>[^\s/@?#'\"]*:[^\s/@?#'\"]*)(?=@)", re.IGNORECASE),
    re.compile(r"(?P<before>https?:/{1,2})(?P<secret>[^\s/@?#'\"]+)(?=@)", re.IGNORECASE),
    re.compile(rf"(?P<before>[?&;]{_PARAMETER}=)(?P<secret>[^\s&;#'\"]+)", re.IGNORECASE),
    re.compile(rf"(?P<before>(?:^|\s)--?{_NAME}(?:=|\s+))(?P<secret>[^\s'\"]+)", re.IGNORECASE),
    re.compile(r"(?P<before>\b(?:Bearer|Basic)\s+)(?P<secret>[A-Za-z0-9+/._~=-]{8,})"),
    re.compile(
        r"(?P<before>)(?P<secret>\b(?:sk-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{16,}|gh[opsur]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|"
        r"(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}|xox[abprs]-[\w-]{10,}|glpat-[\w-]{16,}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+)|"
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----)"
    ),
    re.compile(rf"(?P<before>^{_NAME}\s*:\s*)(?P<secret>\S.*)", re.IGNORECASE),  # A header, such as `X-Api-Key: 123`.
]
# A key with its value within a longer text, such as a comment. Prose may look so too, which is no reason to refuse a file.
_ASSIGNMENT = re.compile(rf"(?P<before>[\s{{,\"'#]{_NAME}[\"']?\s*[:=]\s*[\"']?)(?P<secret>[^\s\"',}}]{{4,}})", re.IGNORECASE)


def is_credential_name(name: str) -> bool:
    """Whether values of this key are credentials.

    Example:
        >>> [is_credential_name(name) for name in ("api_key", "hfToken", "X-Api-Key", "max_tokens", "api_key_variable")]
        [True, True, True, False, False]
    """
    return _KEY.fullmatch(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip().lstrip("-"))) is not None


def redact(text: str) -> str:
    """A text with everything that looks like a credential replaced by `BLACK`.

    Example:
        >>> redact("https://me:geheim@example.org/v1?key=123&page=2")
        'https://[hidden]@example.org/v1?key=[hidden]&page=2'
    """
    for pattern in (*_TEXTS, _ASSIGNMENT):
        text = pattern.sub(lambda match: match["before"] + BLACK, text)
    return text


def holds_credential(text: str) -> bool:
    """Whether a value that a user wrote, such as a URL or an argument, holds a credential."""
    return any(pattern.search(text) for pattern in _TEXTS)


def redact_values(value: Any) -> Any:
    """A JSON value with all credentials in it replaced by `BLACK`: in texts, under keys, and after command-line options."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {
            key: BLACK if is_credential_name(str(key)) and _holds_something(item) else redact_values(item)
            for key, item in value.items()
        }
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        hidden = {index for index, _ in _option_values(value)}
        return [BLACK if index in hidden else redact_values(item) for index, item in enumerate(value)]
    return value


def find_credential(value: Any, key: str = "") -> str | None:
    """The dotted key of the first credential in a document; None if there is none.

    Args:
        value: what a YAML file or a part of it holds.
        key: the key of that part.
    """
    for place, item in _leaves(value, key):
        if item is None or (isinstance(item, str) and holds_credential(item)):
            return place
    return None


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """All keys and values below a value, each with its dotted key; a credential's value is given as None."""
    prefix = f"{key}." if key else ""
    if isinstance(value, Mapping):
        for name, item in value.items():
            place = f"{prefix}{redact(str(name))}"
            yield place, str(name)
            if is_credential_name(str(name)) and _holds_something(item):
                yield place, None
            yield from _leaves(item, place)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        yield from ((f"{prefix}{index}", None) for index, _ in _option_values(value))
        for index, item in enumerate(value):
            yield from _leaves(item, f"{prefix}{index}")
    else:
        yield key, "" if value is None else value


def _option_values(items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """The items of a command line that follow an option such as `--token`, with their positions."""
    for index in range(1, len(items)):
        option, item = items[index - 1], items[index]
        if isinstance(option, str) and option.startswith("-") and is_credential_name(option) and _holds_something(item):
            yield index, item


def _holds_something(value: Any) -> bool:
    return value is not None and not isinstance(value, bool) and value not in ("", [], {})
