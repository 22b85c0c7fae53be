"""Messages between interpreters: what crosses comes out equal, what cannot is refused, and pixels in use are not written over."""

import ast
import math
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from icmbench.harness.guests.side import guest
from icmbench.harness.guests.side.guest import Channel, ProtocolError, SharedFile


class Pair:
    """Two ends of a connection in one process: what `there` sends, `here` receives, and the reverse."""

    def __init__(self):
        self.files = [tempfile.TemporaryFile(buffering=0) for _ in range(2)]  # noqa: SIM115 - closed with the object
        numbers = [file.fileno() for file in self.files]
        first, second = os.pipe(), os.pipe()
        self.here = Channel(first[0], second[1], SharedFile(numbers[1]), SharedFile(numbers[0]))
        self.there = Channel(second[0], first[1], SharedFile(numbers[0]), SharedFile(numbers[1]), copies=False)


VALUES = [
    None, True, 3, -(2**70), 0.1, math.inf, "text \u65e5\u672c", b"", b"\x00\xff" * 40000, [], {}, (1, (2, "x")),
    {"a": [1, {"b": b"c"}], "$": "dollar"}, {1: "number", (2, 3): "pair"}, Path("/some/where"),
    np.zeros((0, 4), np.float32), np.array(3.5), np.float32(0.1), np.bool_(True), np.array([True, False]),
    np.arange(24, dtype=">i4").reshape(2, 3, 4)[:, ::-1, 1:], np.asfortranarray(np.arange(30000.0).reshape(100, 300)),
    np.array([1 + 2j]), np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__}")
def test_values_cross_unchanged(value):
    pair = Pair()
    pair.there.send([value])
    (crossed,) = pair.here.receive()
    pair.here.send([crossed])
    (back,) = pair.there.receive()
    assert type(back) is type(value)
    if isinstance(value, np.ndarray):
        assert back.dtype == value.dtype and back.shape == value.shape and back.flags.writeable
        np.testing.assert_array_equal(back, value)
    else:
        assert back == value or (isinstance(value, dict) and list(back.items()) == list(value.items()))


def test_nan_and_numbers_keep_their_bits():
    pair = Pair()
    values = np.array([np.nan, -0.0, 1e-320, np.inf])
    pair.there.send({"array": values, "number": float("nan"), "third": 1 / 3})
    crossed = pair.here.receive()
    assert crossed["array"].tobytes() == values.tobytes() and math.isnan(crossed["number"]) and crossed["third"] == 1 / 3


@pytest.mark.parametrize("value", [object(), np.array([object()]), [{1, 2}, object()]])
def test_what_cannot_cross_is_named(value):
    with pytest.raises(ProtocolError, match="cannot cross between interpreters"):
        Pair().there.send(value)


def test_foreign_bytes_are_no_message():
    reading, writing = os.pipe()
    os.write(writing, b"Traceback (most recent call last): something else wrote here")
    with pytest.raises(ProtocolError, match="no message"):
        Channel(reading, writing, None, None).receive()


def test_pixels_that_are_still_used_are_not_written_over():
    pair, pictures = Pair(), [np.full((200, 300, 3), value, np.uint8) for value in range(5)]
    kept = []
    for picture in pictures:
        pair.here.send(picture)
        received = pair.there.receive()
        kept.append(received[10:20])  # A part of an array keeps all of it alive.
        del received
        pair.there.send("thanks")
        assert pair.here.receive() == "thanks"
    assert [int(part[0, 0, 0]) for part in kept] == [0, 1, 2, 3, 4]
    size = os.fstat(pair.files[0].fileno()).st_size
    kept.clear()
    for message in ("what is free again?", *pictures * 4):
        pair.here.send(message)
        pair.there.receive()
        pair.there.send("thanks")
        pair.here.receive()
    assert os.fstat(pair.files[0].fileno()).st_size == size  # What is free again is used again.


def test_without_room_in_memory_pixels_go_through_the_pipe(monkeypatch):
    def no_room(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(guest.os, "posix_fallocate", no_room)
    pair, picture = Pair(), np.random.default_rng(0).integers(0, 256, (100, 120, 3), np.uint8)
    pair.there.send(picture)
    np.testing.assert_array_equal(pair.here.receive(), picture)


def test_the_guests_file_is_python_3_8_and_imports_nothing_of_icmbench():
    tree = ast.parse(Path(guest.__file__).read_text(encoding="utf-8"), feature_version=(3, 8))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not any(module.startswith("icmbench") for module in modules)
    assert {path.name for path in Path(guest.__file__).parent.glob("*.py")} == {"__init__.py", "guest.py"}
