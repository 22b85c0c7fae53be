"""From a run to its intervals, pictures and paper bundle."""

import base64
import hashlib
import io
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from icmbench.harness.commands.computing import RunOptions
from icmbench.harness.commands.run import run
from icmbench.harness.config.experiment import load_experiment
from icmbench.harness.derive import resampling
from icmbench.harness.derive.scoring import never_a_number
from icmbench.results.bootstrap import draw_weights
from icmbench.results.published import REPORTED
from icmbench.results.scores import normalise, read_scores
from icmbench.results.tables import bdrate_frame


def decode_data_uri(uri):
    """Pixels of a thumbnail, uint8 (height, width, 3)."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def test_intervals_are_those_of_the_resampled_images(tmp_path, photos, experiment):
    result = run(load_experiment(experiment()), tmp_path / "run")
    table = pd.read_csv(tmp_path / "run" / "scores.csv")
    row = table[(table.point == "bits=2") & (table.metric == "distance")].iloc[0]

    from harness_plugins import Shift

    codec = Shift(6)
    images = [np.asarray(Image.open(path)) for path in sorted(photos.iterdir())]
    distances = np.array([np.abs(codec.decompress(codec.compress(image)).astype(int) - image).mean() for image in images])
    drawn = np.array([draw_weights(10, 0, k) @ distances / 10 for k in range(1, 201)])
    low, middle, high = np.quantile(drawn, [0.025, 0.5, 0.975])
    assert (row.low, row.high) == pytest.approx((row.value + low - middle, row.value + high - middle))
    assert row.undefined == 0
    bars = table[table.metric == "within"]
    assert ((bars.low >= 0) & (bars.high <= 100)).all() and (bars[bars.codec == "uncompressed"].low == 100).all()
    assert "200 paired replicates" in " ".join(result.bdrate.note) or not len(result.bdrate)


def test_replicates_are_kept_and_only_what_changed_is_drawn_again(tmp_path, experiment, monkeypatch):
    run(load_experiment(experiment()), tmp_path / "run")
    first = pd.read_csv(tmp_path / "run" / "scores.csv")
    drawn = []
    original = resampling.draw_replicates
    monkeypatch.setattr(resampling, "draw_replicates", lambda points, *args: drawn.append(points[0]) or original(points, *args))
    run(load_experiment(experiment()), tmp_path / "run")
    assert not drawn
    pd.testing.assert_frame_equal(first[["low", "high"]], pd.read_csv(tmp_path / "run" / "scores.csv")[["low", "high"]])
    run(load_experiment(experiment(codecs=[{"name": "shift", "points": [6, 4, 2, 1]}])), tmp_path / "run")
    assert [(point.codec, point.point) for point in drawn] == [("shift", "bits=7")] * 2
    for file in (tmp_path / "run" / "replicates").iterdir():
        file.write_bytes(b"damaged")
    run(load_experiment(experiment(bootstrap=50)), tmp_path / "run")
    assert len(drawn) == 2 + 4 + 3
    without = run(load_experiment(experiment(bootstrap=0)), tmp_path / "run")
    assert without.scores.low.isna().all()


def test_workers_draw_the_same_replicates(tmp_path, experiment, monkeypatch):
    tasks = [{"name": "mean-colour", "dataset": "photos", "model": {"name": "averager"}, "reference": "original"}]
    path = experiment(tasks=tasks, bootstrap=40)
    one = run(load_experiment(path), tmp_path / "run")
    for file in (tmp_path / "run" / "replicates").iterdir():
        file.unlink()
    monkeypatch.setattr(resampling, "WORTH_WORKERS", 0)
    two = run(load_experiment(path), tmp_path / "run", RunOptions(workers=2))
    pd.testing.assert_frame_equal(one.scores, two.scores)
    assert one.scores.high.notna().all() and len([*(tmp_path / "run" / "replicates").iterdir()]) == 1


def test_the_report_shows_the_most_damaged_images(tmp_path, photos, experiment, monkeypatch):
    from harness_plugins import MeanColour

    def marked(self, image, prediction):
        return np.where(np.arange(image.shape[1])[None, :, None] < 9, np.uint8(0), image)

    monkeypatch.setattr(MeanColour, "draws", True)
    monkeypatch.setattr(MeanColour, "draws", True)
    monkeypatch.setattr(MeanColour, "draw", marked)
    monkeypatch.setattr(MeanColour, "names", lambda self, prediction: ["bright" if prediction["colour"].mean() > 100 else "dark"])
    result = run(load_experiment(experiment()), tmp_path / "run", RunOptions(images=3))
    stored = json.loads((tmp_path / "run" / "pictures.json").read_text())
    assert len(stored["entries"]) == 3 and not stored["left_out"]
    damage = [entry["damage"] for entry in stored["entries"]]
    assert damage == sorted(damage, reverse=True) and damage[0] > 0
    worst = stored["entries"][0]
    assert [entry["point"] for entry in worst["shown"]] == ["bits=2", "bits=4"]  # Lowest and middle, most damaged first.
    original = np.asarray(Image.open(photos / worst["image"]))
    assert np.abs(decode_data_uri(worst["clean"]).astype(int) - original).mean() < 12
    assert decode_data_uri(worst["drawn"])[:, :6].max() < 60 < decode_data_uri(worst["clean"])[:, :6].mean()
    first = worst["shown"][0]
    assert first["bpp"] == pytest.approx(first["bits"] / original.shape[0] / original.shape[1], rel=1e-4)
    assert (worst["score"], first["score"], first["damage"]) == (100, 0, 100)
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert worst["shown"][0]["drawn"] in page and result.report
    before = (tmp_path / "run" / "pictures.json").read_bytes()
    run(load_experiment(experiment()), tmp_path / "run", RunOptions(images=3))
    assert (tmp_path / "run" / "pictures.json").read_bytes() == before


def test_pixels_that_cannot_be_decoded_again_are_left_out_and_kept_ones_shown(tmp_path, experiment, monkeypatch):
    from harness_plugins import MeanColour

    monkeypatch.setattr(MeanColour, "draws", True)
    monkeypatch.setattr(MeanColour, "draws", True)
    monkeypatch.setattr(MeanColour, "draw", lambda self, image, prediction: image)
    path = experiment(codecs=[{"name": "shaky", "points": [2]}], anchor=None)
    run(load_experiment(path), tmp_path / "run", RunOptions(images=2))
    stored = json.loads((tmp_path / "run" / "pictures.json").read_text())
    assert not stored["entries"] and "shaky bits=6: decoded again its pixels are not those scored" in stored["left_out"][0]
    run(load_experiment(path), tmp_path / "kept", RunOptions(images=2, keep=True))
    assert len(json.loads((tmp_path / "kept" / "pictures.json").read_text())["entries"]) == 2


def test_bundle_published_and_compare(tmp_path, experiment, icmbench):
    curves = tmp_path / "paper.csv"
    curves.write_text("codec,dataset,bpp,distance\nTheirs,photos,1,9\nTheirs,photos,4,3\n")
    path = experiment(published=str(curves), bootstrap=20)
    done = icmbench("run", path, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "Theirs (reported)" in (tmp_path / "run" / "report" / "index.html").read_text()
    before = (tmp_path / "run" / "bdrate.csv").read_bytes()
    done = icmbench("report", tmp_path / "run", "--bundle")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "bdrate.csv").read_bytes() == before
    bundle = tmp_path / "run" / "bundle"
    facts = json.loads((bundle / "provenance.json").read_text())
    assert facts["experiment"]["name"] == "small" and facts["bootstrap"] == {"distance": 20, "mean-colour": 20}
    files = {file.relative_to(bundle).as_posix() for file in bundle.rglob("*") if file.is_file()} - {"provenance.json"}
    assert files == {*facts["files"]} and {"tables/scores.tex", "tables/scores.csv", "tables/published.csv"} <= files
    for name in files:
        assert hashlib.sha256((bundle / name).read_bytes()).hexdigest() == facts["files"][name]
    curve = "figures/photos-distance-distance"
    assert {curve + suffix for suffix in (".png", ".svg", ".pdf")} <= files and "tables/bit-split.csv" in files
    assert REPORTED not in (bundle / "tables" / "scores.md").read_text()
    other = experiment(codecs=[{"name": "shift", "points": [6, 4, 1]}], bootstrap=20)
    assert icmbench("run", other, "--out", tmp_path / "other").returncode == 0
    compared = icmbench("compare", tmp_path / "run", tmp_path / "other")
    assert compared.returncode == 0 and "2 scores are in the first run alone, of shift bits=6" in compared.stdout


def test_bdrate_of_curves_made_elsewhere_gives_the_same_tables(tmp_path, icmbench):
    points = ((1, 20), (2, 28), (4, 31))
    rows = [f"{codec},{factor * rate},{value}" for codec, factor in (("a", 1), ("b", 0.5)) for rate, value in points]
    (tmp_path / "curves.csv").write_text("codec,bpp,AP\n" + "\n".join(rows) + "\n")
    done = icmbench("bdrate", tmp_path / "curves.csv", "--anchor", "a", "--out", tmp_path / "out")
    assert done.returncode == 0 and "-50.0" in done.stdout, done.stderr
    table = pd.read_csv(tmp_path / "out" / "bdrate.csv")
    assert table.loc[0, "bd_rate_percent"] == pytest.approx(-50) and table.loc[0, "akima"] == pytest.approx(-50)
    names = {path.name for path in (tmp_path / "out" / "report").iterdir()}
    assert {"index.html", "bdrate.md", "bdrate.tex", "scores.md", "scores.tex", "AP.png", "AP.svg"} <= names
    (tmp_path / "paper.csv").write_text("codec,bpp,AP\nc,0.25,20\nc,1,31\n")
    with_published = icmbench("bdrate", tmp_path / "curves.csv", "--anchor", "a", "--published", tmp_path / "paper.csv")
    assert "c (reported)" in with_published.stdout and "c (reported)" not in done.stdout


def test_the_experiments_method_and_envelope_make_its_bd_table(tmp_path, experiment):
    codecs = [{"name": "jpeg", "points": [5, 20, 50, 90]}, {"name": "webp", "points": [5, 20, 50, 90]}]
    tasks = [{"name": "fidelity", "dataset": "photos"}]
    tables = {}
    for method, envelope in (("pchip", "pareto"), ("akima", "isotonic")):
        path = experiment(codecs=codecs, tasks=tasks, anchor="jpeg", bootstrap=0, method=method, envelope=envelope)
        result = run(load_experiment(path), tmp_path / "run")
        expected = bdrate_frame(normalise(result.scores), "jpeg", method, envelope)
        pd.testing.assert_frame_equal(result.bdrate[["bd_rate_percent"]], expected[["bd_rate_percent"]])
        assert (result.bdrate.bd_rate_percent.dropna() == result.bdrate[method][result.bdrate.bd_rate_percent.notna()]).all()
        tables[method] = result.bdrate.set_index(["codec", "metric"]).bd_rate_percent
    assert abs(tables["pchip"]["webp", "psnr"] - tables["akima"]["webp", "psnr"]) > 1e-6


def test_the_mark_of_a_realisation_never_reads_as_a_number(tmp_path):
    marks = {
        "0a1b2c3d": "0a1b2c3d",
        "00012345": "x00012345",
        "12345e67": "x12345e67",
        "nan": "xnan",
        "seed=0 12345678": "seed=0 12345678",
    }
    assert {text: never_a_number(text) for text in marks} == marks
    random = np.random.default_rng(0)
    for alphabet in ("0123456789abcdef", "0123456789", "012345e"):
        for text in ("".join(random.choice(list(alphabet), 8)) for _ in range(300)):
            mark = never_a_number(text)
            assert mark.removeprefix("x") == text
            assert pd.read_csv(io.StringIO(f"realisation\n{mark}\n")).realisation.tolist() == [mark]
    (tmp_path / "scores.csv").write_text("codec,bpp,metric,value,realisation\nshaky,1,distance,2,00012345\n")
    assert read_scores(tmp_path / "scores.csv").realisation.tolist() == ["00012345"]  # A run may hold a mark from before.


def test_the_bit_split_of_an_earlier_state_of_the_experiment_goes(tmp_path, experiment):
    run(load_experiment(experiment()), tmp_path / "run")
    split = tmp_path / "run" / "analyses" / "bit-split.csv"
    assert split.exists()
    run(load_experiment(experiment(codecs=[{"name": "jpeg", "points": [20]}], anchor=None)), tmp_path / "run")
    assert not split.exists() and "bit-split" not in (tmp_path / "run" / "derived.json").read_text()
