"""`icmbench export`: pictures as they were scored, whole or absent, of one run, and read back by the codec `folder`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from icmbench.harness.cli import main
from icmbench.harness.commands.computing import RunOptions
from icmbench.harness.commands.export import export
from icmbench.harness.commands.export_names import file_names, folder_name
from icmbench.harness.commands.run import run
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import load_experiment
from icmbench.harness.store.keys import pixel_sha256
from icmbench.tasks.models.predictions_manifest import read_manifest

DISTANCE = [{"name": "distance", "dataset": "photos"}]


@pytest.fixture
def finished(tmp_path, experiment):
    """A function that runs an experiment with one cheap task and returns its run folder."""

    def make(name="run", options=None, **changes):
        path = experiment(**{"tasks": DISTANCE, "bootstrap": 0} | changes)
        assert not run(load_experiment(path), tmp_path / name, options or RunOptions()).missing
        return tmp_path / name

    return make


def write_export(run_folder, target, codecs=(), datasets=()):
    return [*export(str(run_folder), codecs, datasets, target)]


def pixels_in(folder):
    return {
        path.relative_to(folder).as_posix(): pixel_sha256(np.asarray(Image.open(path))) for path in sorted(folder.rglob("*.png"))
    }


def streams_of(run_folder):
    return pd.read_parquet(run_folder / "streams.parquet")


def test_every_picture_has_the_pixels_that_were_scored(tmp_path, finished):
    folder, out = (
        finished(codecs=[{"name": "shift", "points": [6, 4]}, {"name": "jpeg", "label": "j/1 %", "points": [10]}]),
        tmp_path / "out",
    )
    lines = write_export(folder, out)
    assert len(lines) == 4 and all(line.endswith("10 pictures, 10 of them new") for line in lines)
    streams = streams_of(folder)
    for point, codec in [("bits=2", "shift"), ("bits=4", "shift"), ("quality=10", "j/1 %")]:
        pictures = out / "photos" / ("j%2F1%20%25" if codec != "shift" else codec) / point
        rows = streams[(streams["codec"] == codec) & (streams["point"] == point)].set_index("id")
        assert pixels_in(pictures) == rows["sha256"].to_dict()
        manifest = read_manifest(pictures / "manifest.json")
        facts = {key: manifest.facts[key] for key in ("dataset", "codec", "point", "seed", "experiment", "rate")}
        expected = {"dataset": "photos", "codec": codec, "point": point, "seed": None, "experiment": "small", "rate": "measured"}
        assert facts == expected
        assert {image.id: (image.pixels, image.bytes) for image in manifest.images} == {
            image_id: (row["sha256"], row["bytes"]) for image_id, row in rows.iterrows()
        }
    originals = read_manifest(out / "photos" / "uncompressed" / "manifest.json")
    assert pixels_in(out / "photos" / "uncompressed") == {image.file: image.source for image in originals.images}
    assert {image.bytes for image in originals.images} == {None} and not (out / "photos" / "uncompressed" / "sizes.csv").exists()


def test_the_codec_folder_reads_an_export_back(tmp_path, photos, experiment, finished):
    (photos / "sub").mkdir()
    shutil.move(photos / "1.png", photos / "sub" / "1.png")
    Image.open(photos / "2.png").transpose(Image.Transpose.ROTATE_90).save(photos / "2.jpg", quality=90)
    folder, out = finished(codecs=[{"name": "shift", "points": [6, 4]}]), tmp_path / "out"
    write_export(folder, out)
    assert {"sub/1.png", "2.png.png", "2.jpg.png"} <= {*pixels_in(out / "photos" / "shift" / "bits=4")}
    there = {"path": str(out / "photos" / "shift"), "sizes": str(out / "photos" / "shift" / "sizes.csv")}
    back = finished("back", codecs=[{"name": "folder", "points": ["bits=2", "bits=4"], "set": there}], anchor="folder")
    columns = ["point", "id", "bytes", "sha256"]
    first, second = (streams_of(each)[columns].sort_values(["point", "id"]).reset_index(drop=True) for each in (folder, back))
    pd.testing.assert_frame_equal(first, second)


def test_a_part_is_exported_by_codec_point_seed_and_dataset(tmp_path, finished):
    codecs = [{"name": "shift", "points": [6, 4], "seeds": [1, 2]}, {"name": "jpeg", "points": [10, 20]}]
    folder, out = finished(codecs=codecs, anchor="jpeg"), tmp_path / "out"
    write_export(folder, out, ["jpeg quality=20", "shift 4"], ["photos"])
    assert {path.name for path in (out / "photos").glob("*/*") if path.is_dir()} == {"quality=20", "bits=4.seed=1", "bits=4.seed=2"}
    sizes = pd.read_csv(out / "photos" / "jpeg" / "sizes.csv")
    assert set(sizes["point"]) == {"quality=20"} and len(sizes) == 10
    write_export(folder, out, ["jpeg", "uncompressed", "shift bits=2 seed=1"])
    assert set(pd.read_csv(out / "photos" / "jpeg" / "sizes.csv")["point"]) == {"quality=10", "quality=20"}
    assert (out / "photos" / "uncompressed" / "0.png").exists() and not (out / "photos" / "shift" / "bits=2.seed=2").exists()
    for arguments, message in [
        ((["jpg"], []), "unknown codec 'jpg'; did you mean 'jpeg'"),
        ((["jpeg quality=30"], []), "unknown codec 'jpeg quality=30'; did you mean 'jpeg quality=[12]0'"),
        (([], ["photo"]), "unknown dataset 'photo'; did you mean 'photos'"),
    ]:
        with pytest.raises(UserError, match=message):
            write_export(folder, out, *arguments)


def test_streams_are_decoded_once_and_kept_pictures_never(tmp_path, finished, calls):
    codecs = [{"name": "shift", "points": [4]}]
    folder = finished(codecs=codecs)
    calls()
    write_export(folder, tmp_path / "out")
    assert calls() == {"decompress shift": 10}
    write_export(folder, tmp_path / "out")
    assert calls() == {}
    kept = finished("kept", RunOptions(keep=True), codecs=codecs)
    calls()
    write_export(kept, tmp_path / "other")
    assert calls() == {}
    pictures = "photos/shift/bits=4"
    assert pixels_in(tmp_path / "out" / pictures) == pixels_in(tmp_path / "other" / pictures)


@pytest.mark.parametrize("name", ["shaky", "estimating-shaky"])
def test_a_realisation_that_is_lost_is_refused_by_name(tmp_path, finished, name):
    codecs = [{"name": name, "points": [4]}]
    folder = finished(codecs=codecs, anchor=None)
    with pytest.raises(
        UserError, match=rf"photos / {name} .*: image '0.png': the codec gives other pixels each time, .* --keep reconst"
    ):
        write_export(folder, tmp_path / "out")
    assert not [*(tmp_path / "out" / "photos" / name).rglob("manifest.json")]
    kept = finished("kept", RunOptions(keep=True), codecs=codecs, anchor=None)
    write_export(kept, tmp_path / "kept-export")
    (pictures,) = [path for path in (tmp_path / "kept-export" / "photos" / name).iterdir() if path.is_dir()]
    rows = streams_of(kept).set_index("id")
    assert pixels_in(pictures) == rows["sha256"].to_dict()


def test_estimated_rates_never_become_sizes(tmp_path, finished):
    folder = finished(codecs=[{"name": "estimating"}], anchor=None)
    write_export(folder, tmp_path / "out", ["estimating"])
    assert not [*(tmp_path / "out").rglob("sizes.csv")]
    for path in (tmp_path / "out").rglob("manifest.json"):
        manifest = read_manifest(path)
        assert manifest.facts["rate"] == "estimated" and {image.bytes for image in manifest.images} == {None}
        assert pixels_in(path.parent) == {image.file: image.pixels for image in manifest.images}


def test_a_codec_that_decodes_otherwise_now_is_refused(tmp_path, finished, monkeypatch):
    folder = finished(codecs=[{"name": "shift", "points": [4]}])
    import harness_plugins

    decode = harness_plugins.Shift.decompress
    monkeypatch.setattr(harness_plugins.Shift, "decompress", lambda self, data: decode(self, data) + 1)
    with pytest.raises(UserError, match=r"photos / shift bits=4: image '0.png': decodes to other pixels here than those that were"):
        write_export(folder, tmp_path / "out")


# One run to a folder.


def test_an_export_is_never_mixed_with_anything_else(tmp_path, finished):
    codecs = [{"name": "shift", "points": [4]}]
    first, second, out = finished(codecs=codecs), finished("second", codecs=codecs), tmp_path / "out"
    write_export(first, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=rf"holds the export of another run, {first}: name another folder"):
        write_export(second, out)
    shutil.move(first, tmp_path / "moved")
    assert all("0 of them new" in line for line in write_export(tmp_path / "moved", out)), "a run that was moved is the same one"
    assert {path.name for path in before} == {path.name for path in out.rglob("*") if path.is_file()}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="holds files that are no export's"):
        write_export(second, tmp_path / "mine")
    with pytest.raises(UserError, match="is a file; name a folder"):
        write_export(second, tmp_path / "mine" / "thesis.tex")
    (out / "export.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        write_export(tmp_path / "moved", out)


def test_pixels_that_are_there_are_compared_and_never_replaced(tmp_path, finished):
    folder, out = finished(codecs=[{"name": "shift", "points": [4]}]), tmp_path / "out"
    write_export(folder, out)
    pictures = out / "photos" / "shift" / "bits=4"
    Image.open(out / "photos" / "uncompressed" / "0.png").save(pictures / "0.png")
    with pytest.raises(
        UserError, match=r"0.png does not hold the pixels of '0.png' in this run: delete it, or name another folder"
    ):
        write_export(folder, out)
    (pictures / "0.png").unlink()
    assert "1 of them new" in write_export(folder, out, ["shift"])[0]
    text = (pictures / "manifest.json").read_text()
    (pictures / "manifest.json").write_text(text.replace('"pixels": "', f'"pixels": "{"0" * 64}", "other": "', 1))
    with pytest.raises(UserError, match=r"manifest.json lists image '0.png' with other pixels, size or file than the run has now"):
        write_export(folder, out)


def test_a_run_that_grew_extends_its_export(tmp_path, finished):
    changes = {"codecs": [{"name": "shift", "points": [4]}], "shard_size": 4}
    folder, out = finished(limit=3, **changes), tmp_path / "out"
    write_export(folder, out)
    finished(**changes)
    lines = write_export(folder, out)
    assert all("10 pictures, 7 of them new" in line for line in lines)
    assert len(pd.read_csv(out / "photos" / "shift" / "sizes.csv")) == 10
    finished(limit=3, **changes)
    assert all("3 pictures, 0 of them new" in line for line in write_export(folder, out))
    assert len(read_manifest(out / "photos" / "shift" / "bits=4" / "manifest.json").images) == 10, "what is there stays listed"


def test_a_run_without_tables_is_refused(tmp_path, finished, capsys):
    folder = finished(codecs=[{"name": "shift", "points": [4]}])
    (folder / "derived.json").unlink()
    with pytest.raises(UserError, match="holds no finished tables"):
        write_export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert main(["export", str(tmp_path / "absent"), "--to", str(tmp_path / "out")]) == 2
    assert "no run folder" in capsys.readouterr().err


def test_the_command_line_says_what_was_written(tmp_path, finished, capsys):
    folder = finished(codecs=[{"name": "shift", "points": [4]}])
    assert main(["export", str(folder), "--codec", "shift 4", "--to", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}/photos/shift/bits=4: 10 pictures, 10 of them new\n"


def test_kill_9_leaves_whole_pictures_or_none(tmp_path, finished):
    folder, out = finished(codecs=[{"name": "shift", "points": [6, 4]}, {"name": "jpeg", "points": [10]}]), tmp_path / "out"
    write_export(folder, tmp_path / "whole")
    command = [sys.executable, "-m", "icmbench.harness.cli", "export", str(folder), "--to", str(out)]
    killed = 0
    for count in (1, 4, 11, 25):  # The command is killed when so many pictures are there.
        with subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            while process.poll() is None and len([*out.rglob("*.png")]) < count:
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
        whole = pixels_in(tmp_path / "whole")
        assert all(whole[name] == sha256 for name, sha256 in pixels_in(out).items())
        for manifest in out.rglob("manifest.json"):
            assert all((manifest.parent / image.file).exists() for image in read_manifest(manifest).images)
    assert killed, "the command was faster than every kill"
    finished_process = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, timeout=300)
    assert finished_process.returncode == 0, finished_process.stderr
    names = [sorted(path.relative_to(each).as_posix() for path in each.rglob("*")) for each in (out, tmp_path / "whole")]
    assert names[0] == names[1] and pixels_in(out) == pixels_in(tmp_path / "whole")
    assert all(
        (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        for name in names[0]
        if name.endswith((".csv", ".json"))
    )


# Names.


def test_images_whose_files_would_be_one_keep_their_suffix():
    names = file_names(["b/a.jpg", "b/a.webp", "a.jpg", "c.v2.png", "ä.png"])
    assert list(names.values()) == ["b/a.jpg.png", "b/a.webp.png", "a.png", "c.v2.png", "ä.png"]


@pytest.mark.parametrize("ids", [["b.png", "b"], ["x.jpg", "x.jpg.gif"], ["a.jpg", "a.png", "a.jpg.tif"]])
def test_ids_that_the_codec_folder_would_confuse_are_refused(ids):
    with pytest.raises(UserError, match="rename one of the photographs"):
        file_names(ids)


@pytest.mark.parametrize("image_id", ["../a.png", "/a.png", "a//b.png", "./a.png", "", "a/" + "x" * 300 + ".png"])
def test_ids_that_name_no_file_below_a_folder_are_refused(image_id):
    with pytest.raises(UserError, match="can name no file below a folder"):
        file_names([image_id])


def test_labels_and_points_become_names_of_folders():
    texts = ["quality=20", "preset=slow,qp=32", "a/b", "a%2Fb", "..", ".hidden", "Ä b", "a b"]
    names = [folder_name(text) for text in texts]
    assert names[:2] == texts[:2] and len({*names}) == len(texts)
    assert not any("/" in name or name.startswith(".") for name in names)
    for text in ("", "x" * 201):
        with pytest.raises(UserError, match="give it another label"):
            folder_name(text)


def test_the_record_of_an_export_names_the_run(tmp_path, finished):
    folder = finished(codecs=[{"name": "shift", "points": [4]}])
    write_export(folder, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert record["format"] == "icmbench-export-1" and record["run"] == str(folder) and record["experiment"] == "small"
