"""The `command` codec with real programs: scripts that encode and decode WebP, and scripts that fail in every way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from icmbench.codecs import process
from icmbench.codecs.base import BitstreamError, CodecError
from icmbench.codecs.command import Command

from .helpers import is_gone

PYTHON = sys.executable

ENCODER = """
    import sys
    from PIL import Image
    source, stream, quality = sys.argv[1:]
    Image.open(source).save(stream, "WEBP", quality=int(quality))
"""
DECODER = """
    import sys
    from PIL import Image
    stream, target = sys.argv[1:]
    Image.open(stream, formats=["WEBP"]).save(target)
"""
COPY = "import shutil, sys; shutil.copyfile(*sys.argv[1:])"
HANG = """
    import pathlib, subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("still running", file=sys.stderr, flush=True)
    pathlib.Path(sys.argv[1]).write_text(str(child.pid))
    time.sleep(600)
    pathlib.Path(sys.argv[1]).with_name("slept").touch()
"""


@pytest.fixture
def script(tmp_path):
    """Writes a Python script and returns the words that run it."""

    def write(name: str, source: str) -> list[str]:
        path = tmp_path / f"{name}.py"
        path.write_text(textwrap.dedent(source))
        return [PYTHON, str(path)]

    return write


@pytest.fixture
def lines(script):
    """Command lines of the WebP encoder and decoder."""
    return {
        "encode": [*script("encoder", ENCODER), "{input}", "{stream}", "{quality}"],
        "decode": [*script("decoder", DECODER), "{stream}", "{output}"],
    }


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (24, 37, 3), np.uint8)


def encoder(words: list[str]) -> dict[str, list[str]]:
    """Command lines of a codec whose decoder is never called."""
    return {"encode": [*words, "{input}", "{stream}", "{point}"], "decode": [PYTHON, "{stream}", "{output}"]}


def decoder(words: list[str]) -> dict[str, list[str]]:
    """Command lines of a codec whose encoder is never called."""
    return {"encode": [PYTHON, "{input}", "{stream}", "{point}"], "decode": [*words, "{stream}", "{output}"]}


def test_a_photograph_through_a_real_codec(photograph, lines):
    sizes, errors = [], []
    for quality in [5, 50]:
        codec = Command({"quality": quality}, **lines)
        stream = codec.compress(photograph)
        assert stream[:4] == b"RIFF" and stream == codec.compress(photograph)
        reconstruction = codec.decompress(stream)
        assert (reconstruction.shape, reconstruction.dtype) == (photograph.shape, np.uint8)
        sizes.append(len(stream))
        errors.append(np.mean((reconstruction.astype(float) - photograph) ** 2))
    assert sizes[0] < sizes[1] and errors[1] < errors[0] < 255**2 / 10**2.9  # 29 dB


@pytest.mark.parametrize("extension", ["ppm", "png", "bmp", "tif"])
def test_every_pixel_format_is_lossless(script, image, extension):
    words = script("copy", COPY)
    codec = Command(
        1,
        encode=[*words, "{input}", "{stream}"],
        decode=[PYTHON, "-c", f"{COPY} if '{{point}}' else 0", "{stream}", "{output}"],
        input=extension,
        output=extension,
        stream=extension,
    )
    assert np.array_equal(codec.decompress(codec.compress(image)), image)
    for shape in [(1, 1, 3), (1, 300, 3), (33, 1, 3)]:
        assert codec.decompress(codec.compress(np.full(shape, 7, np.uint8))).shape == shape


def test_placeholders_carry_sizes_parameters_and_literal_braces(script, image):
    words = script("words", "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('|'.join(sys.argv[3:]))")
    line = [*words, "{stream}", "{input}", "{width}x{height}", "--qp={qp:03d}", "{preset}", "{{qp}}", "$(id) *"]
    codec = Command({"qp": 7, "preset": "very slow"}, encode=line, decode=[PYTHON, "{stream}", "{output}"])
    assert codec.compress(image) == b"37x24|--qp=007|very slow|{qp}|$(id) *"


def test_points(lines):
    line = {"encode": ["env", "{input}", "{stream}", "{point}"], "decode": ["env", "{stream}", "{output}"]}
    number, word = Command(32, **line).point, Command("fast", **line).point
    assert (number.label, number.order, number.parameters) == ("point=32", 32, {"point": 32})
    assert (word.label, word.order, word.parameters) == ("fast", 0, {"point": "fast"})
    preset_and_qp = {"encode": ["env", "{input}", "{stream}", "{preset}", "{qp}"], "decode": line["decode"]}
    low, high = (Command({"preset": "slow", "qp": qp}, order="-qp", **preset_and_qp).point for qp in (42, 22))
    assert low.label == "preset=slow,qp=42"
    assert low.order < high.order
    assert Command({"preset": "slow", "qp": 42}, **preset_and_qp).point.order == 42


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"encode": ["env", "{input}", "{stream}", "{qpp}"]},
            r"no placeholder {qpp}.*known are {input} {stream} {width} {height} {qp}",
        ),
        ({"decode": ["env", "{stream}", "{output}", "{width}"]}, "from its bytes alone.*known are {stream} {output} {qp}"),
        ({"encode": ["env", "{input}", "{stream}", "{qp"]}, "literal brace"),
        ({"encode": ["env", "{input}", "{stream}", "{qp.real}"]}, "no placeholder {qp.real}"),
        ({"encode": ["env", "{input:d}", "{stream}", "{qp}"]}, "cannot be filled in"),
        ({"encode": ["env", "{input}", "{qp}"]}, "encode does not use {stream}"),
        ({"decode": ["env", "{stream}"]}, "decode does not use {output}"),
        ({"encode": ["env", "{input}", "{stream}"]}, "{qp} nowhere"),
        ({"encode": "env {input} {stream} {qp}"}, "list of words"),
        ({"encode": ["env", "{input}", "{stream}", 32]}, "quote numbers"),
        ({"encode": []}, "list of words"),
        ({"encode": ["no-such-encoder", "{input}", "{stream}", "{qp}"]}, "no program 'no-such-encoder' on PATH"),
        ({"decode": ["no-such-decoder", "{stream}", "{output}"]}, "no program 'no-such-decoder' on PATH"),
        ({"decode": ["./no-such-decoder", "{stream}", "{output}"]}, "no program './no-such-decoder' in /"),
        ({"point": {"input": 3}}, "'input' cannot name a parameter"),
        ({"point": {"qp": True}}, "a number or a word, not True"),
        ({"point": {"qp": [1, 2]}}, "a number or a word"),
        ({"point": {}}, "at least one parameter"),
        ({"order": "-quality"}, "names a number of the point, qp, not '-quality'"),
        ({"input": "jpg"}, "input is one of ppm, png, bmp, tif, not 'jpg'"),
        ({"stream": "../x"}, "extension"),
        ({"timeout_seconds": 0}, "positive"),
    ],
    ids=str,
)
def test_a_bad_description_is_refused_before_anything_runs(changes, message):
    good = {"encode": ["env", "{input}", "{stream}", "{qp}"], "decode": ["env", "{stream}", "{output}"], "point": {"qp": 32}}
    with pytest.raises(CodecError, match=message):
        Command(**{**good, **changes})


def test_the_fingerprint_holds_both_programs_and_their_files(lines, tmp_path):
    def fingerprint_with(**changes):
        return Command({"quality": 5}, **{**lines, **changes}).fingerprint

    before = fingerprint_with()
    facts = json.loads(before)
    assert facts["parameters"] == {"quality": 5}
    assert set(facts["sha256"]) == {PYTHON, str(tmp_path / "encoder.py"), str(tmp_path / "decoder.py")}
    assert fingerprint_with(timeout_seconds=99) == before
    assert fingerprint_with(encode=[*lines["encode"], "--more"]) != before
    with (tmp_path / "decoder.py").open("a") as file:
        file.write("# changed\n")
    assert fingerprint_with() != before


def test_relative_programs_and_files_start_at_the_folder(tmp_path, image, monkeypatch):
    folder = tmp_path / "tools {1}"  # The space and the braces of the path must have no meaning.
    folder.mkdir()
    (folder / "encode").write_text(f"#!{PYTHON}\n{COPY}\n")
    (folder / "encode").chmod(0o755)
    (folder / "copy.py").write_text(COPY)
    line = {
        "encode": ["./encode", "{input}", "{stream}"],
        "decode": ["env", "POINT={point}", PYTHON, "copy.py", "{stream}", "{output}"],
    }
    with pytest.raises(CodecError, match=r"no program './encode' in"):
        Command(1, **line)
    codec = Command(1, folder=folder, **line)
    assert set(json.loads(codec.fingerprint)["sha256"]) == {"./encode", "env", PYTHON, "copy.py"}
    monkeypatch.chdir("/")
    assert np.array_equal(codec.decompress(codec.compress(image)), image)


def test_each_call_has_a_folder_of_its_own_that_is_removed(script, image, tmp_path):
    log = tmp_path / "folders.txt"
    words = script(
        "where", f"import os, sys; open({str(log)!r}, 'a').write(os.getcwd() + chr(10)); open(sys.argv[2], 'w').write('x')"
    )
    codec = Command(1, **encoder(words))
    codec.compress(image)
    codec.compress(image)
    first, second = log.read_text().split()
    assert first != second and not Path(first).exists() and not Path(second).exists()


def test_a_failing_encoder_is_a_codec_error_with_the_end_of_its_stderr(script, image):
    words = script("fail", "import sys; [print(f'line {n}', file=sys.stderr) for n in range(5000)]; sys.exit(3)")
    with pytest.raises(CodecError, match="the encoder") as caught:
        Command(1, **encoder(words)).compress(image)
    text = str(caught.value)
    assert "ended with code 3" in text and "37x24" in text
    assert text.splitlines()[1:] == [f"line {n}" for n in range(4980, 5000)]


def test_a_program_without_line_breaks_gives_a_short_tail(script, image):
    words = script("fail", "import sys; sys.stderr.write('é' * 100_000 + 'the end'); sys.exit(1)")
    with pytest.raises(CodecError, match=r"the end$") as caught:
        Command(1, **encoder(words)).compress(image)
    assert len(str(caught.value)) < 2200


def test_stdout_stands_in_for_an_empty_stderr(script, image):
    words = script("fail", "print('bad level'); raise SystemExit(1)")
    with pytest.raises(CodecError, match="bad level"):
        Command(1, **encoder(words)).compress(image)


def test_a_crash_names_its_signal(script, image):
    words = script("crash", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(CodecError, match="killed by signal 11"):
        Command(1, **encoder(words)).compress(image)


def test_an_encoder_that_writes_nothing(script, image):
    with pytest.raises(CodecError, match=r"wrote nothing to \{stream\}"):
        Command(1, **encoder(script("idle", ""))).compress(image)
    with pytest.raises(CodecError, match=r"wrote nothing to \{stream\}"):
        Command(1, **encoder(script("touch", "import sys; open(sys.argv[2], 'w')"))).compress(image)


def test_much_stdout_and_a_closed_stdin_do_not_block(script, image):
    words = script(
        "loud", "import sys; assert sys.stdin.read() == ''; sys.stdout.write('x' * 10_000_000); open(sys.argv[2], 'w').write('ok')"
    )
    assert Command(1, timeout_seconds=300, timeout_seconds_per_megapixel=0, **encoder(words)).compress(image) == b"ok"


@pytest.mark.parametrize("data", [b"", b"x", b"RIFF", bytes(500)], ids=["empty", "short", "magic", "zeros"])
def test_bad_streams_are_bitstream_errors(lines, data):
    with pytest.raises(BitstreamError):
        Command({"quality": 5}, **lines).decompress(data)


def test_truncated_streams_are_bitstream_errors(lines, image):
    codec = Command({"quality": 5}, **lines)
    stream = codec.compress(image)
    for length in [1, 12, 30, len(stream) // 2, len(stream) - 2]:
        with pytest.raises(BitstreamError, match="ended with code 1"):
            codec.decompress(stream[:length])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise SystemExit('broken stream')", "broken stream"),
        ("", "wrote nothing to {output}"),
        ("import sys; open(sys.argv[2], 'w').write('P6 not an image')", "no readable ppm"),
        ("import sys; open(sys.argv[2], 'wb').write(b'P6 9 9 255 ' + bytes(100))", "no readable ppm"),
        ("import sys; open(sys.argv[2], 'wb').write(b'P5 2 2 255 ' + bytes(4))", "pixels are L"),
        ("import sys; from PIL import Image; Image.new('RGB', (3, 3)).save(sys.argv[2], 'PNG')", "no readable ppm"),
    ],
    ids=["fails", "writes nothing", "not an image", "half an image", "grey", "another format"],
)
def test_a_decoder_without_an_image_is_a_bitstream_error(script, source, message):
    with pytest.raises(BitstreamError, match=message):
        Command(1, **decoder(script("decode", source))).decompress(b"stream")


def test_a_hanging_encoder_and_its_child_are_killed(script, tmp_path, limit_time_from, image):
    words = [*script("hang", HANG), str(tmp_path / "pid")]
    codec = Command(1, timeout_seconds=2, timeout_seconds_per_megapixel=1, **encoder(words))
    limit_time_from(tmp_path / "pid")
    with pytest.raises(CodecError, match=r"did not end within 2 s \(raise timeout_seconds.*37x24:\nstill running"):
        codec.compress(image)
    assert not (tmp_path / "slept").exists()
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_the_encoders_time_out_grows_with_the_pixels(script):
    words = script("slow", "import sys, time; time.sleep(2); open(sys.argv[2], 'w').write('ok')")
    codec = Command(1, timeout_seconds=0.2, timeout_seconds_per_megapixel=1000, **encoder(words))
    with pytest.raises(CodecError, match="did not end"):
        codec.compress(np.zeros((10, 10, 3), np.uint8))
    assert codec.compress(np.zeros((500, 500, 3), np.uint8)) == b"ok"


def test_a_hanging_decoder_is_a_bitstream_error(script, tmp_path, limit_time_from):
    words = [*script("hang", HANG), str(tmp_path / "pid")]
    codec = Command(1, decode_timeout_seconds=2, **decoder(words))
    limit_time_from(tmp_path / "pid")
    with pytest.raises(BitstreamError, match="raise decode_timeout_seconds"):
        codec.decompress(b"stream")
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_a_child_left_behind_is_killed_when_the_program_ends(script, tmp_path, image):
    source = HANG.replace("    time.sleep(600)\n", "    open(sys.argv[3], 'w').write('ok')\n")
    assert source != HANG
    codec = Command(1, **encoder([*script("leave", source), str(tmp_path / "pid")]))
    assert codec.compress(image) == b"ok"
    assert is_gone(int((tmp_path / "pid").read_text()))


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt. A shell that runs the tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_kills_the_program(script, tmp_path, image):
    pid = tmp_path / "pid"
    codec = Command(1, timeout_seconds=600, **encoder([*script("hang", HANG), str(pid)]))

    def interrupt():
        while not (pid.exists() and pid.read_text()):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        codec.compress(image)
    assert is_gone(int(pid.read_text()))


def test_a_program_that_vanished_is_a_codec_error(tmp_path, image):
    program = tmp_path / "tool"
    shutil.copy(shutil.which("env"), program)
    codec = Command(1, **encoder([str(program)]))
    program.unlink()
    with pytest.raises(CodecError, match="cannot be started"):
        codec.compress(image)


def test_only_rgb_arrays_are_compressed(lines):
    with pytest.raises(CodecError, match="uint8 array of shape"):
        Command({"quality": 5}, **lines).compress(np.zeros((8, 8), np.uint8))


def test_importing_costs_little():
    code = "import sys, icmbench.codecs.command; print(not {'torch', 'pandas', 'scipy'} & set(sys.modules))"
    assert subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "True"


def test_files_that_options_and_parameters_name_are_in_the_fingerprint(tmp_path, image):
    (tmp_path / "enc{1}.cfg").write_text("a")
    (tmp_path / "slow.cfg").write_text("b")
    (tmp_path / "plain").write_text("c")
    show = "import pathlib, sys; pathlib.Path(sys.argv[2]).write_text(chr(10).join(sys.argv[3:]))"
    line = {
        "encode": [
            PYTHON,
            "-c",
            show,
            "{input}",
            "{stream}",
            "--config=enc{{1}}.cfg",
            "-x=y=slow.cfg",
            "{preset}.cfg",
            "--q=plain",
        ],
        "decode": [PYTHON, "{stream}", "{output}"],
    }

    def codec():
        return Command({"preset": "slow"}, folder=tmp_path, **line)

    before = codec().fingerprint
    named = {"--config=enc{{1}}.cfg": tmp_path / "enc{1}.cfg", "{preset}.cfg": tmp_path / "slow.cfg"}
    assert set(json.loads(before)["sha256"]) == {PYTHON, "-x=y=slow.cfg", *named}
    assert codec().compress(image).decode().splitlines() == [
        f"--config={tmp_path}/enc{{1}}.cfg", f"-x=y={tmp_path}/slow.cfg", f"{tmp_path}/slow.cfg", "--q=plain",
    ]  # fmt: skip
    for file in named.values():
        file.write_text("changed" + file.name)
        assert codec().fingerprint != before
        before = codec().fingerprint


def test_folders_that_arguments_name_are_hashed(lines, tmp_path, script, image, monkeypatch):
    """A model folder decides what an encoder writes, so another file in it, however deep, is another codec."""
    model = tmp_path / "tools/weights"
    (model / "deep/er").mkdir(parents=True)
    (model / "deep/er/layer.bin").write_bytes(b"1")
    (model / "loop").symlink_to(model)
    (model / "deep/up").symlink_to(tmp_path / "tools")
    (model / "self").symlink_to(model / "self")
    os.mkfifo(model / "pipe")
    shutil.copytree(model / "deep/er", tmp_path / "tools/qp5")

    def codec(*words, point=5):
        return Command({"quality": point}, encode=[*lines["encode"], *words], decode=lines["decode"], folder=tmp_path / "tools")

    for word in ("--model=./weights", "weights/", str(model), "--model=weights/deep/er", "./qp{quality}"):
        before = codec(word).fingerprint
        assert codec(word).fingerprint == before and len(json.loads(before)["sha256"][word]) == 64
    before = {word: codec(word).fingerprint for word in ("--model=./weights", "weights/deep/er")}
    (model / "deep/er/layer.bin").write_bytes(b"22")
    assert all(codec(word).fingerprint != text for word, text in before.items())
    before = codec("./weights").fingerprint
    (model / "deep/er/layer.bin").rename(model / "deep/er/other.bin")
    assert codec("./weights").fingerprint != before
    before = codec("./weights").fingerprint
    for name in ("__pycache__", ".git"):  # Written by Python and git, and read by neither codec.
        (model / name).mkdir()
        (model / name / "x").write_text("x")
    assert codec("./weights").fingerprint == before
    monkeypatch.chdir("/")
    words = script("where", "import sys; open(sys.argv[2], 'w').write(sys.argv[3])")
    line = {"encode": [*words, "{input}", "{stream}", "--model=./weights", "{point}"], "decode": lines["decode"]}
    assert Command(1, folder=tmp_path / "tools", **line).compress(image) == f"--model={model}".encode()


def test_folders_that_say_nothing_of_the_codec_are_not_hashed(lines, tmp_path):
    (tmp_path / "weights").mkdir()
    before = len(json.loads(Command({"quality": 5}, folder=tmp_path, **lines).fingerprint)["sha256"])
    for word in ("weights", ".", "./", "../", "/", "--tmp=/tmp", "--tmp=/var/tmp", "/dev/shm", "--log={stream}.d/"):
        codec = Command({"quality": 5}, encode=[*lines["encode"], word], decode=lines["decode"], folder=tmp_path)
        assert len(json.loads(codec.fingerprint)["sha256"]) == before, word


def test_a_folder_of_too_many_files_is_refused(lines, tmp_path, monkeypatch):
    for k in range(4):
        (tmp_path / "data" / str(k)).mkdir(parents=True)
        (tmp_path / "data" / str(k) / "x").write_bytes(bytes(10))
    options = {"encode": [*lines["encode"], "data/"], "decode": lines["decode"], "folder": tmp_path}
    for limit, value in (("MAX_FOLDER_FILES", 3), ("MAX_FOLDER_BYTES", 39)):
        Command({"quality": 5}, **options)
        with monkeypatch.context() as patch:
            patch.setattr(process, limit, value)
            with pytest.raises(CodecError, match=r"command: encode: the folder .*data holds more than .* name the files that"):
                Command({"quality": 5}, **options)
