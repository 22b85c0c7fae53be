"""Anchor packs: nothing is encoded twice, scores stay equal, and a pack that was tampered with is refused."""

import hashlib
import json
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from icmbench.harness.cli import main
from icmbench.harness.commands.computing import RunOptions
from icmbench.harness.commands.run import run
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import load_experiment
from icmbench.harness.store.folder import Folder
from icmbench.harness.store.pack import MANIFEST, Pack
from icmbench.harness.store.pack_export import export
from icmbench.harness.work.bench import Bench

TIMES = ["decode_seconds", "task_seconds"]
STREAMS_ONLY = RunOptions(shard=(1, 1))  # Writes no tables.
CODECS = [{"name": "shift", "label": "anchor", "points": [6, 4]}]


@pytest.fixture
def packed(tmp_path, experiment, calls):
    """The pack of a run of `shift` at two points."""
    run(load_experiment(experiment(codecs=CODECS, anchor=None)), tmp_path / "first", STREAMS_ONLY)
    export(str(tmp_path / "first"), "anchor", tmp_path / "anchor.icmpack")
    calls()
    return tmp_path / "anchor.icmpack"


def rewrite(pack: Path, change=lambda manifest: None, streams=lambda name, data: data, seal=True, compression=zipfile.ZIP_STORED):
    """Change the manifest or the streams of a pack in place; with `seal` the hash of the manifest is renewed, as a forger would."""
    with zipfile.ZipFile(pack) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
        comment = archive.comment
    manifest = json.loads(members.pop(MANIFEST))
    change(manifest)
    text = json.dumps(manifest).encode()
    with zipfile.ZipFile(pack, "w", compression) as archive:
        for name, data in {**{n: streams(n, d) for n, d in members.items()}, MANIFEST: text}.items():
            archive.writestr(name, data)
        archive.comment = hashlib.sha256(text).hexdigest().encode() if seal else comment


def using(experiment, pack, **changes):
    return load_experiment(experiment(codecs=[{"name": "shift", "label": "anchor", "pack": str(pack)}], anchor=None, **changes))


def test_another_run_encodes_nothing_and_scores_the_same(tmp_path, experiment, calls, packed):
    pack = packed
    first = run(load_experiment(experiment(codecs=CODECS, anchor=None)), tmp_path / "first")
    calls()
    result = run(using(experiment, pack, shard_size=3, batch_size=2), tmp_path / "second")
    assert not result.missing, result.outcome.failures
    assert "compress shift" not in (counted := calls()) and counted["decompress shift"] == 20
    pd.testing.assert_frame_equal(result.scores.drop(columns=TIMES), first.scores.drop(columns=TIMES))
    environment = json.loads((tmp_path / "second" / "environment.json").read_text())
    assert environment["packs"] == {"anchor": Pack(pack).sha256}
    assert run(using(experiment, pack, shard_size=3), tmp_path / "second", STREAMS_ONLY).outcome.codec_images == 0
    worker = pickle.loads(pickle.dumps(Bench(using(experiment, pack), Folder(tmp_path / "second"))))
    assert worker.packs["anchor"].sha256 == Pack(pack).sha256


def test_images_are_known_by_their_pixels_and_only_new_ones_are_encoded(tmp_path, experiment, calls, packed, photos):
    for name in ("0.png", "4.png", "5.png"):
        (photos / name).unlink()
    (photos / "9.png").rename(photos / "another name.png")
    result = run(using(experiment, packed), tmp_path / "second", STREAMS_ONLY)
    assert not result.outcome.failures and "compress shift" not in calls()
    Image.new("RGB", (40, 60), (9, 99, 199)).save(photos / "new.png")
    result = run(using(experiment, packed), tmp_path / "third", STREAMS_ONLY)
    assert not result.outcome.failures and calls()["compress shift"] == 2  # At two points.


ENCODER = """#!{python}
import sys; import numpy as np; from PIL import Image
Image.fromarray(np.asarray(Image.open(sys.argv[2])) & (256 - int(sys.argv[1]))).save(sys.argv[3], "PNG")
"""
DECODER = """#!{python}
import sys; from PIL import Image
Image.open(sys.argv[1], formats=["PNG"]).save(sys.argv[2], "PPM")
"""


def test_an_encoder_that_is_absent_is_not_missed(tmp_path, experiment):
    for name, code in (("encode", ENCODER), ("decode", DECODER)):
        (tmp_path / name).write_text(code.format(python=sys.executable))
        (tmp_path / name).chmod(0o755)
    commands = {"encode": ["./encode", "{q}", "{input}", "{stream}"], "decode": ["./decode", "{stream}", "{output}"]}
    section = {"name": "command", "label": "anchor", "points": [{"q": 16}], "set": commands}

    tasks = [{"name": "distance", "dataset": "photos"}]

    def result(folder, limit, **more):
        changes = {"codecs": [section | more], "tasks": tasks, "anchor": None, "limit": limit}
        return run(load_experiment(experiment(**changes)), tmp_path / folder)

    first, pack = result("first", 2), tmp_path / "anchor.icmpack"
    assert not first.missing, first.outcome.failures
    export(str(tmp_path / "first"), "anchor", pack)
    (tmp_path / "encode").unlink()
    second = result("second", 2, pack=str(pack), points=None)
    assert not second.missing, second.outcome.failures
    pd.testing.assert_frame_equal(second.scores.drop(columns=TIMES), first.scores.drop(columns=TIMES))
    assert "its encoder is not here" in result("third", 3, pack=str(pack)).outcome.failures[0].reason
    (tmp_path / "decode").unlink()
    with pytest.raises(UserError, match="'command' cannot be made: command: decode: no program"):
        result("fourth", 2, pack=str(pack))


def fake(field, value):
    def change(manifest):
        for point in manifest["points"]:
            for row in point["streams"]:
                row[field] = value

    return change


def test_tampering_is_caught(tmp_path, experiment, packed):
    pack = packed
    whole = pack.read_bytes()

    def refused(words, **changes):
        pack.write_bytes(whole)
        rewrite(pack, **changes)
        with pytest.raises(UserError, match=words) as error:
            Pack(pack).check()
        assert str(pack) in str(error.value) and "\n" not in str(error.value)

    refused("its manifest was altered", change=fake("bytes", 7), seal=False)
    refused("was altered: SHA-256", streams=lambda name, data: data[:-1] + b"?")
    refused("was altered", change=fake("bytes", 7))
    refused("holds .* which its manifest does not name", change=lambda manifest: manifest["points"].pop())
    refused("compressed", compression=zipfile.ZIP_DEFLATED)
    # An altered stream, or one with forged pixels, is met only in the run: its cells are missing, with the reason.
    pack.write_bytes(whole)
    rewrite(pack, streams=lambda name, data: data[:-1] + b"?")
    result = run(using(experiment, pack), tmp_path / "second", STREAMS_ONLY)
    assert len(result.outcome.failures) == 2 * 3 and "was altered" in result.outcome.failures[0].reason
    pack.write_bytes(whole)
    rewrite(pack, change=fake("pixels", "0" * 64))
    result = run(using(experiment, pack), tmp_path / "second")
    assert "decodes to other pixels here" in result.outcome.failures[0].reason
    assert len(result.missing) == 2 * 3 * 2 and set(result.scores.codec) == {"uncompressed"}


def test_a_pack_of_another_codec_is_refused_and_both_are_named(tmp_path, experiment, packed):
    pack = packed
    with pytest.raises(UserError, match=r"anchor.icmpack holds streams of 'shift', not of 'jpeg'"):
        run(load_experiment(experiment(codecs=[{"name": "jpeg", "pack": str(pack)}], anchor=None)), tmp_path / "x")
    with pytest.raises(UserError, match=r"has no point bits=7; it holds bits=2, bits=4"):
        run(load_experiment(experiment(codecs=[{"name": "shift", "points": [1], "pack": str(pack)}])), tmp_path / "x")
    rewrite(pack, lambda m: m["points"][0].update(fingerprint=json.dumps({"codec": "shift", "point": 6, "library": "zlib 1"})))
    with pytest.raises(UserError, match=r'codecs.0.pack: .*anchor.icmpack .*: library is "zlib 1" in the pack, nothing here'):
        run(using(experiment, pack), tmp_path / "x")
    assert not (tmp_path / "x" / "store").exists()


HOSTILE = {
    "traversal": lambda m: fake("id", "../../../../tmp/evil")(m),
    "control": lambda m: fake("id", "\x1b[2J\n<script>" * 300)(m),
    "option": lambda m: m["points"][0].update(given="--config=/etc/passwd"),
    "code": lambda m: m.update(codec="../../os:system"),
    "unknown": lambda m: m.update(extra=1),
    "huge": lambda m: fake("bytes", 10**4000)(m),
    "hash": lambda m: fake("stream", "../../etc/passwd")(m),
    "type": lambda m: m.update(points={}),
}


def test_hostile_manifests_are_harmless(tmp_path, experiment, packed, capsys):
    whole = packed.read_bytes()
    for name, change in HOSTILE.items():
        packed.write_bytes(whole)
        rewrite(packed, change)
        before = set(tmp_path.rglob("*"))
        code = main(["pack", "verify", str(packed)])
        printed = capsys.readouterr()
        assert code == (0 if name in ("traversal", "control") else 2), name
        assert printed.err.count("\n") == (code == 2) and "\x1b" not in printed.out + printed.err
        assert set(tmp_path.rglob("*")) | {tmp_path / "calls.log"} == before | {tmp_path / "calls.log"}
        if code == 0:  # Image ids appear in messages only.
            assert not run(using(experiment, packed), tmp_path / name, STREAMS_ONLY).outcome.failures


def test_files_that_are_no_packs_are_refused(tmp_path, packed):
    pack = packed
    whole = pack.read_bytes()
    random = np.random.default_rng(0)
    for k in range(200):
        data = bytearray(whole)
        if k % 3:
            for _ in range(k % 5 + 1):
                data[random.integers(len(data))] ^= 1 << int(random.integers(8))
        else:
            del data[random.integers(len(data)) :]
        pack.write_bytes(bytes(data))
        if bytes(data) != whole:
            try:
                assert Pack(pack).check() == 20  # The changed byte has no meaning, such as one of a date.
            except UserError as error:
                assert str(pack) in str(error)
    for bad in (pickle.dumps({"a": print}), b"", b"PK\x05\x06" + bytes(18)):
        pack.write_bytes(bad)
        with pytest.raises(UserError, match="not a whole pack"):
            Pack(pack)


def test_export_and_verify_on_the_command_line(tmp_path, packed, capsys):
    again = tmp_path / "again.icmpack"
    assert main(["pack", "export", str(tmp_path / "first"), "--codec", "anchor", "--out", str(again)]) == 0
    assert "20 streams of 2 points" in capsys.readouterr().out and again.read_bytes() == packed.read_bytes()
    assert main(["pack", "verify", str(packed)]) == 0
    printed = capsys.readouterr().out
    assert "20 streams of 'shift' as recorded" in printed and printed.count("decodes to the recorded pixels") == 2
    for arguments, words in [
        (["export", tmp_path / "nowhere", "--codec", "anchor", "--out", "x"], "not the folder of a finished run"),
        (["export", tmp_path / "first", "--codec", "anchr", "--out", "x"], "has no codec 'anchr'; it has anchor"),
        (["verify", tmp_path / "nowhere"], "cannot read the pack"),
    ]:
        assert main(["pack", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
