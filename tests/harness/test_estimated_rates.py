"""Codecs that estimate their rate: exact bits, nothing to decode, and no number that mixes them with real bytes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from icmbench.harness.cli import main
from icmbench.harness.commands.computing import RunOptions
from icmbench.harness.commands.run import run
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import load_experiment
from icmbench.harness.store.formats import ESTIMATED_FORMAT, FORMAT
from icmbench.harness.store.pack import Pack
from icmbench.harness.store.store import Store
from icmbench.results.scores import read_scores

MIXED = [{"name": "shift"}, {"name": "estimating"}]
ONE_POINT = [{"name": "estimating", "points": [4]}]
DISTANCE = [{"name": "distance", "dataset": "photos"}]
LIFT = [*DISTANCE, {"name": "lift", "dataset": "photos"}]
TIMES = ["encode_seconds", "decode_seconds", "task_seconds"]
MARK = "estimating (estimated rate)"


def estimating(point, **options):
    """The plug-in itself, whose package only the fixture of these tests makes importable."""
    from harness_plugins import Estimating

    return Estimating(point, **options)


def scores(folder):
    return pd.read_csv(Path(folder) / "scores.csv").drop(columns=TIMES)


def rates(folder, codec="estimating"):
    """bpp of a codec by point."""
    frame = scores(folder)
    return frame[(frame["codec"] == codec) & (frame["task"] == "distance")].set_index("point")["bpp"].to_dict()


def expected_rate(photos, point, scale=1.0):
    """Bits over pixels of all photographs, by the plug-in itself."""
    images = [np.asarray(Image.open(file)) for file in sorted(photos.iterdir())]
    codec = estimating(point, scale=scale)
    return sum(codec.reconstruct(image)[1] for image in images) / sum(image[..., 0].size for image in images)


def estimates(folder, codec="estimating"):
    """All stored rows of a codec that estimates."""
    return [
        row
        for file in sorted((Path(folder) / "store" / "streams").rglob("0*.parquet"))
        if json.loads(pq.read_schema(file).metadata[b"about"])["codec"] == codec
        for row in pq.read_table(file).to_pylist()
    ]


def test_a_run_has_exact_rates_and_no_bd_rate_against_real_bytes(tmp_path, experiment, photos, calls):
    path = experiment(codecs=MIXED)
    result = run(load_experiment(path), tmp_path / "run")
    assert not result.missing and not result.outcome.failures and result.outcome.codec_images == 60
    assert calls()["reconstruct estimating"] == 30
    frame = scores(tmp_path / "run")
    assert frame.groupby("codec")["rate_kind"].unique().map(list).to_dict() | {"uncompressed": None} == {
        "shift": ["measured"], "estimating": ["estimated"], "uncompressed": None,
    }  # fmt: skip
    assert frame.loc[frame["codec"] == "uncompressed", "rate_kind"].isna().all()
    assert rates(tmp_path / "run") == {
        f"bits={8 - point}": pytest.approx(expected_rate(photos, point), rel=1e-12) for point in (6, 4, 2)
    }
    bdrate = pd.read_csv(tmp_path / "run" / "bdrate.csv")
    assert bdrate["codec"].unique() == ["estimating"] and bdrate[["bd_rate_percent", "bd_quality"]].isna().all(axis=None)
    reason = "undefined: the rate of estimating is estimated and that of shift is of real bytes, which share no BD-rate"
    assert bdrate["note"].str.contains(reason, regex=False).all()
    assert set(bdrate["rate_kind"]) == {"estimated"} and set(bdrate["anchor_rate_kind"]) == {"measured"}
    calls()
    again = run(load_experiment(path), tmp_path / "run")
    assert not calls() and not again.outcome.codec_images and not again.missing


def test_tables_page_and_commands_say_so(tmp_path, experiment, capsys):
    path = experiment(codecs=MIXED)
    assert main(["run", str(path), "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert MARK in printed and "undefined: one rate is estimated, the other is of real bytes" in printed
    report = tmp_path / "run" / "report"
    for name in ("index.html", "bdrate.md", "bdrate.tex", "scores.md", "scores.tex"):
        assert MARK in (report / name).read_text(encoding="utf-8"), name
    assert "shift (estimated rate)" not in (report / "index.html").read_text(encoding="utf-8")
    assert main(["status", str(tmp_path / "run")]) == 0
    assert "rates that the codec estimates, and no real bytes: estimating\n" in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "run"), str(tmp_path / "run")]) == 0
    assert "The rates of estimating are estimated, not measured in real bytes." in capsys.readouterr().out
    assert main(["store", "ls", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.count(MARK) == 3
    assert main(["run", str(experiment(codecs=ONE_POINT, anchor=None)), "--out", str(tmp_path / "alone")]) == 0
    assert MARK in capsys.readouterr().out


def test_a_rate_far_below_a_byte_an_image_is_not_rounded(tmp_path, experiment, photos):
    codecs = [{"name": "estimating", "points": [4], "set": {"scale": 2e-4}}]
    run(load_experiment(experiment(codecs=codecs, anchor=None)), tmp_path / "run")
    expected = expected_rate(photos, 4, 2e-4)
    assert expected < 0.003 and rates(tmp_path / "run")["bits=4"] == pytest.approx(expected, rel=1e-12)
    assert all(row["bits"] < 8 for row in estimates(tmp_path / "run"))
    reported = pq.read_table(tmp_path / "run" / "streams.parquet").to_pandas()
    assert reported["bytes"].isna().all() and reported["bits"].between(0, 8, "neither").all()


def test_nothing_is_stored_to_decode_and_the_files_have_a_format_of_their_own(tmp_path, experiment):
    run(load_experiment(experiment(codecs=MIXED)), tmp_path / "run")
    assert len(estimates(tmp_path / "run")) == 30 and not {"data", "stream", "bytes"} & {*estimates(tmp_path / "run")[0]}
    numbers = {}
    for file in (tmp_path / "run" / "store").rglob("*.parquet"):
        metadata = pq.read_schema(file).metadata
        about = json.loads(metadata[b"about"])
        numbers.setdefault(about.get("codec", "task"), set()).add(int(metadata[b"format"]))
    assert numbers == {"shift": {FORMAT}, "estimating": {ESTIMATED_FORMAT}, "task": {FORMAT}}
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["format"] == ESTIMATED_FORMAT
    run(load_experiment(experiment(codecs=MIXED[:1])), tmp_path / "real")
    assert json.loads((tmp_path / "real" / "environment.json").read_text())["format"] == FORMAT


def test_a_task_that_is_added_makes_the_codec_reconstruct_again(tmp_path, experiment, calls):
    run(load_experiment(experiment(codecs=ONE_POINT, anchor=None, tasks=DISTANCE)), tmp_path / "run")
    calls()
    result = run(load_experiment(experiment(codecs=ONE_POINT, anchor=None, tasks=LIFT)), tmp_path / "run")
    assert not result.missing and calls()["reconstruct estimating"] == 10 and len(estimates(tmp_path / "run")) == 10
    run(load_experiment(experiment(codecs=ONE_POINT, anchor=None, tasks=DISTANCE)), tmp_path / "kept", RunOptions(keep=True))
    calls()
    result = run(load_experiment(experiment(codecs=ONE_POINT, anchor=None, tasks=LIFT)), tmp_path / "kept", RunOptions(keep=True))
    assert not result.missing and "reconstruct estimating" not in calls(), "kept pictures spare the codec"


def test_other_pixels_of_a_codec_that_calls_itself_deterministic_are_refused(tmp_path, experiment):
    codecs = [{"name": "estimating", "points": [4], "set": {"habit": "random"}}]
    run(load_experiment(experiment(codecs=codecs, anchor=None, tasks=DISTANCE)), tmp_path / "run")
    result = run(load_experiment(experiment(codecs=codecs, anchor=None, tasks=LIFT)), tmp_path / "run")
    reasons = {failure.reason for failure in result.outcome.failures}
    pattern = r"reconstructing '\d.png' again gave other pixels: codec 'estimating' must say `deterministic = False`"
    assert reasons and all(re.fullmatch(pattern, reason) for reason in reasons)


def test_a_codec_that_is_not_deterministic_has_the_bits_of_the_pixels_in_force(tmp_path, experiment, calls):
    codecs = [{"name": "estimating-shaky", "points": [4]}]
    run(load_experiment(experiment(codecs=codecs, anchor=None, tasks=DISTANCE)), tmp_path / "run")
    first = estimates(tmp_path / "run", "estimating-shaky")
    assert len(first) == 10 and len(list((tmp_path / "run" / "store" / "claims").rglob("*"))) >= 10
    result = run(load_experiment(experiment(codecs=codecs, anchor=None, tasks=LIFT)), tmp_path / "run")
    assert not result.missing and result.outcome.replaced
    rows = estimates(tmp_path / "run", "estimating-shaky")
    later = [row for row in rows if row["sha256"] not in {old["sha256"] for old in first}]
    assert len(rows) == 20 and len(later) == 10
    pixels = sum(row["height"] * row["width"] for row in later)
    assert rates(tmp_path / "run", "estimating-shaky")["bits=4"] == pytest.approx(sum(r["bits"] for r in later) / pixels, rel=1e-12)
    calls()
    assert not run(load_experiment(experiment(codecs=codecs, anchor=None, tasks=LIFT)), tmp_path / "run").missing and not calls()


def test_kill_9_and_resume(tmp_path, experiment):
    path = experiment(shard_size=1, codecs=MIXED, tasks=DISTANCE)
    run(load_experiment(path), tmp_path / "whole")
    command = [sys.executable, "-m", "icmbench.harness.cli", "run", str(path), "--out", str(tmp_path / "run")]
    for count in (3, 9):
        environment = os.environ | {"ICMBENCH_SLOW_CODEC": "0.02"}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 200
        while process.poll() is None and time.monotonic() < deadline:
            if sum(row["bits"] > 0 for row in _readable_estimates(tmp_path / "run")) >= count:
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    result = run(load_experiment(path), tmp_path / "run")
    assert not result.missing and 0 < result.outcome.codec_images < 60
    pd.testing.assert_frame_equal(scores(tmp_path / "run"), scores(tmp_path / "whole"), check_exact=True)
    assert len(estimates(tmp_path / "run")) == 30, "no row is stored twice"


def _readable_estimates(folder):
    """Rows of those shards that are there; a process that is killed leaves others half-written under another name."""
    try:
        return estimates(folder)
    except FileNotFoundError:
        return []


def test_on_a_gpu_it_works_in_the_model_processes(tmp_path, experiment, calls):
    codecs = [{"name": "shift", "points": [4]}, {"name": "estimating-on-gpu", "points": [4]}]
    tasks = [{"name": "mean-colour", "dataset": "photos", "model": {"name": "loader"}, "reference": "original"}, *DISTANCE]
    path = experiment(codecs=codecs, tasks=tasks, shard_size=2)
    result = run(load_experiment(path), tmp_path / "roles", RunOptions(coders=2, models=1, devices=("5",)))
    assert not result.missing and not result.outcome.failures
    counts = calls()
    places = {line for line in counts if line.startswith("coded in")}
    loaded = {line.split()[1] for line in counts if line.startswith("load ")}
    assert {line.split()[2] for line in places} == loaded and {line.rpartition(" ")[2] for line in places} == {"5"}
    run(load_experiment(path), tmp_path / "one")
    pd.testing.assert_frame_equal(scores(tmp_path / "one"), scores(tmp_path / "roles"))
    bad = experiment(codecs=[{"name": "estimating-on-gpu", "points": [4], "set": {"habit": "nan"}}], anchor=None, tasks=tasks)
    result = run(load_experiment(bad), tmp_path / "bad", RunOptions(coders=1, models=1, devices=("5",)))
    reasons = {failure.reason for failure in result.outcome.failures}
    pattern = r"reconstruct gave nan as the bits of '\d.png'; bits are a finite number above 0"
    assert reasons and all(re.fullmatch(pattern, reason) for reason in reasons)


def test_batches_are_halved_where_memory_runs_out(tmp_path, experiment, calls):
    for habit in ("", "hungry"):
        codecs = [{"name": "estimating-in-batches", "points": [4], "set": {"habit": habit}}]
        result = run(load_experiment(experiment(codecs=codecs, anchor=None)), tmp_path / (habit or "calm"))
        assert not result.missing and ("batch of 1" in calls()) >= bool(habit)
    assert rates(tmp_path / "hungry", "estimating-in-batches") == rates(tmp_path / "calm", "estimating-in-batches")
    codecs[0]["set"] = {"habit": "fewer"}
    result = run(load_experiment(experiment(codecs=codecs, anchor=None)), tmp_path / "fewer")
    assert "reconstruct gave 1 results for 2 images" in {failure.reason for failure in result.outcome.failures}


@pytest.mark.parametrize(
    ("habit", "reason"),
    [
        ("nan", "reconstruct gave nan as the bits of '0.png'; bits are a finite number above 0"),
        ("infinite", "reconstruct gave inf as the bits of '0.png'; bits are a finite number above 0"),
        ("zero", "reconstruct gave 0 as the bits of '0.png'; bits are a finite number above 0"),
        ("negative", "reconstruct gave -1 as the bits of '0.png'; bits are a finite number above 0"),
        ("text", "reconstruct gave str as the bits of '0.png'; bits are a finite number above 0"),
        ("array", "reconstruct gave ndarray as the bits of '0.png'; bits are a finite number above 0"),
        ("truth", "reconstruct gave bool as the bits of '0.png'; bits are a finite number above 0"),
        ("pixels", "reconstruct gave ndarray for '0.png'; a reconstruction is a pair of pixels and bits"),
        ("three", "reconstruct gave tuple for '0.png'; a reconstruction is a pair of pixels and bits"),
        ("floats", "the reconstruction of '0.png' is float64 (40, 60, 3), not uint8 (40, 60, 3)"),
        ("small", "the reconstruction of '0.png' is uint8 (39, 60, 3), not uint8 (40, 60, 3)"),
    ],
)
def test_what_is_no_reconstruction_is_an_error_that_names_the_image(tmp_path, experiment, habit, reason):
    codecs = [{"name": "estimating", "points": [4], "set": {"habit": habit}}]
    result = run(load_experiment(experiment(codecs=codecs, anchor=None, tasks=DISTANCE, limit=1)), tmp_path / "run")
    assert [failure.reason for failure in result.outcome.failures] == [reason]
    assert not estimates(tmp_path / "run")


def test_an_image_that_fails_is_left_out_where_failures_are_tolerated(tmp_path, experiment, calls):
    codecs = [*ONE_POINT, {"name": "estimating", "label": "picky", "points": [4], "set": {"habit": "picky"}}]
    path = experiment(codecs=codecs, anchor=None, tasks=DISTANCE, fail_on_error=1)
    result = run(load_experiment(path), tmp_path / "run")
    frame = scores(tmp_path / "run")
    assert not result.missing and len(result.outcome.failures) == 1 and (frame["scored"] == 9).all()
    calls()
    assert not run(load_experiment(path), tmp_path / "run").missing and not calls()


def test_curves_that_are_both_estimated_have_a_bd_rate_that_says_so(tmp_path, experiment):
    half = {"name": "estimating-in-batches", "label": "half", "set": {"scale": 0.5}}
    path = experiment(codecs=[*MIXED, half], anchor="estimating", tasks=DISTANCE, bootstrap=50)
    result = run(load_experiment(path), tmp_path / "run")
    assert not result.missing
    rows = result.bdrate.set_index("codec")
    assert rows.loc["half", ["bd_rate_percent", "low", "high"]].tolist() == pytest.approx([-50, -50, -50])
    assert rows.loc["half", "note"].startswith("estimated rates: neither codec writes real bytes")
    assert rows.loc["shift", ["bd_rate_percent", "bd_quality", "low", "high", "quality_low", "undefined"]].isna().all()
    assert "the rate of estimating is estimated and that of shift is of real bytes" in rows.loc["shift", "note"]
    intervals = read_scores(tmp_path / "run" / "scores.csv")
    assert intervals.loc[intervals["codec"] == "half", ["low", "high"]].notna().all(axis=None)
    page = (tmp_path / "run" / "report" / "index.html").read_text(encoding="utf-8")
    assert f"BD-rate against {MARK}, in percent" in page and "half (estimated rate)" in page


def test_packs_and_streams_are_refused_by_name(tmp_path, experiment, photos, capsys):
    run(load_experiment(experiment(codecs=MIXED)), tmp_path / "run")
    export = ["pack", "export", str(tmp_path / "run"), "--out", str(tmp_path / "a.icmpack"), "--codec"]
    assert main([*export, "estimating"]) == 2
    assert "'estimating' estimates its rate and writes no streams: nothing to pack" in capsys.readouterr().err
    assert main([*export, "shift"]) == 0
    with pytest.raises(UserError, match=r"codecs.0.pack: codec 'estimating' estimates its rate and reads no streams"):
        Pack(tmp_path / "a.icmpack").adopt(estimating(6), "codecs.0", False, None)
    assert main(["encode", str(photos / "0.png"), str(tmp_path / "a.bin"), "--codec", "estimating"]) == 2
    assert "--codec: 'estimating' estimates its rate and writes no streams" in capsys.readouterr().err
    (tmp_path / "a.bin").write_bytes(b"stream")
    assert main(["decode", str(tmp_path / "a.bin"), str(tmp_path / "a.png"), "--codec", "estimating"]) == 2
    assert "codec 'estimating' estimates its rate and has no streams to decode" in capsys.readouterr().err
    assert main(["run", str(experiment(codecs=[{"name": "both-ways"}], anchor=None)), "--out", str(tmp_path / "both")]) == 2
    assert "codec 'both-ways' has both 'compress' and 'reconstruct'" in capsys.readouterr().err


def test_compare_sees_that_estimates_moved_although_pixels_are_equal(tmp_path, experiment, capsys):
    for name, scale in (("a", 1.0), ("b", 1.001)):
        codecs = [{"name": "estimating", "points": [4], "set": {"scale": scale}}]
        run(load_experiment(experiment(codecs=codecs, anchor=None, tasks=DISTANCE)), tmp_path / name)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "The streams differ in size in 10 of 10 images; what differs there: scale 1.0 to 1.001" in capsys.readouterr().out


def test_the_page_of_images_reconstructs_again_and_says_that_bits_are_estimated(tmp_path, experiment, photos, calls):
    tasks = [{"name": "drawn", "dataset": "photos", "model": {"name": "drawn-averager"}, "reference": "original"}]
    run(load_experiment(experiment(codecs=MIXED, tasks=tasks)), tmp_path / "run", RunOptions(images=1))
    assert calls()["reconstruct estimating"] == 30 + 2, "one image at two points, which were not kept"
    (entry,) = json.loads((tmp_path / "run" / "pictures.json").read_text())["entries"]
    shown = {(each["codec"], each["point"]): each for each in entry["shown"]}
    assert {key[0]: each.get("estimated", False) for key, each in shown.items()} == {"shift": False, "estimating": True}
    bits = estimating(6).reconstruct(np.asarray(Image.open(photos / entry["image"])))[1]
    assert shown["estimating", "bits=2"]["bits"] == round(bits)
    assert shown["estimating", "bits=2"]["bpp"] == pytest.approx(bits / entry["height"] / entry["width"], rel=1e-4)


def test_a_store_is_verified_copied_and_cleaned(tmp_path, experiment, capsys, calls):
    path = experiment(codecs=MIXED, tasks=DISTANCE)
    run(load_experiment(path), tmp_path / "run", RunOptions(keep=True))
    assert main(["store", "verify", str(tmp_path / "run")]) == 0
    assert main(["store", "copy", str(tmp_path / "run"), str(tmp_path / "copy")]) == 0
    assert main(["store", "verify", str(tmp_path / "copy")]) == 0
    pictures = sorted((tmp_path / "run" / "store").rglob("*.png"))
    assert pictures and main(["store", "clean", str(tmp_path / "run"), "--yes"]) == 0
    assert sorted((tmp_path / "run" / "store").rglob("*.png")) == pictures, "pictures of estimated points are needed too"
    calls()
    other = experiment(codecs=ONE_POINT, anchor=None, tasks=DISTANCE, store=str(tmp_path / "copy"))
    assert not run(load_experiment(other), tmp_path / "other").missing and "reconstruct estimating" not in calls()
    capsys.readouterr()


def test_a_store_with_streams_of_that_fingerprint_is_refused(tmp_path):
    made = Store(tmp_path / "store").streams("[0, null]")
    row = dict.fromkeys(made.schema.names) | {"key": bytes(16), "stream": "x", "data": b"x"}
    made.append([row])
    with pytest.raises(UserError, match="has other columns than expected: raise the `version` of what was changed"):
        Store(tmp_path / "store").streams("[0, null]", estimated=True).refresh()


def test_runs_are_merged_and_one_label_for_both_kinds_is_refused(tmp_path, experiment, capsys):
    run(load_experiment(experiment(codecs=MIXED[:1])), tmp_path / "real")
    run(load_experiment(experiment(codecs=MIXED[1:], anchor=None)), tmp_path / "estimated")
    run(load_experiment(experiment(codecs=MIXED)), tmp_path / "whole")
    folders = [str(tmp_path / name) for name in ("real", "estimated")]
    assert main(["merge", *folders, "--out", str(tmp_path / "merged")]) == 0
    pd.testing.assert_frame_equal(scores(tmp_path / "merged"), scores(tmp_path / "whole"), check_exact=True)
    assert MARK in capsys.readouterr().out
    environment = tmp_path / "estimated" / "environment.json"
    record = json.loads(environment.read_text())
    for each in record["series"]:
        each.update(label="shift", codec="shift")
    record["experiment"]["codecs"][0].update(label="shift", name="shift")
    environment.write_text(json.dumps(record))
    assert main(["merge", *folders, "--out", str(tmp_path / "again")]) == 2
    assert "codec 'shift' writes real bytes in one of" in capsys.readouterr().err
