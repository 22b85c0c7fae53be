"""Layer curves, time against BD-rate, realism against fidelity, and the figures of codecs' own analyses."""

import numpy as np
import pandas as pd
import pytest

from icmbench.results.analyses import complexity_table, draw_bit_maps, draw_bit_split, draw_energy_shares
from icmbench.results.figures import draw_layer_curves, draw_realism_against_fidelity, draw_time_against_bdrate, extra_figures
from icmbench.results.report import write_report
from icmbench.results.scores import ScoresError, codec_names, normalise, primary_keys
from icmbench.results.tables import bdrate_frame

LAYERS = [f"layer{stage}.{block}" for stage, blocks in enumerate((3, 4, 6, 3), start=1) for block in range(blocks)]


@pytest.fixture
def layers():
    rows = [
        {"codec": codec, "point": str(k), "dataset": "kodak", "task": "layers", "metric": layer, "bpp": bpp * (1 + shift),
         "value": (0.05 + shift) * (1 + depth / 8) / (1 + 8 * bpp), "higher_is_better": False}
        for codec, shift in (("jpeg", 0.2), ("webp", 0.1), ("elic", 0.0), ("diffusion", 0.05))
        for k, bpp in enumerate((0.05, 0.2, 0.8))
        for depth, layer in reversed([*enumerate(LAYERS)])
    ]  # fmt: skip
    return normalise(pd.DataFrame(rows))


@pytest.fixture
def parts():
    rows = [("elic", str(q), part, bits * q) for q in (1, 2) for part, bits in (("header", 16), ("z", 100), ("y", 900))]
    return pd.DataFrame(
        [*rows, ("jpeg", "10", "header", 40.0), ("jpeg", "10", "scan", 360.0)], columns=["codec", "point", "part", "bits"]
    )


@pytest.fixture
def complexity():
    encode = [("slim", "encode", "vae", 34e6, 500.0), ("slim", "encode", "lfgcm", 51.49e6, 100.0)]
    rows = [*encode, ("slim", "decode", "unet", 866e6, 2000.0)]
    return pd.DataFrame(rows, columns=["codec", "stage", "part", "parameters", "gmac"])


def test_layer_curves_have_a_panel_for_each_codec_and_run_from_shallow_to_deep(layers):
    figure = draw_layer_curves(layers)
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert [*panels] == ["jpeg", "webp", "elic", "diffusion"] and all(len(axes.lines) == 3 for axes in panels.values())
    assert [tick.get_text() for tick in panels["webp"].get_xticklabels()] == [name.removeprefix("layer") for name in LAYERS]
    values = panels["elic"].lines[0].get_ydata()
    rows = layers[(layers["codec"] == "elic") & (layers["point"] == "0")].set_index("metric")["value"]
    np.testing.assert_array_equal(values, rows[LAYERS])
    with pytest.raises(ScoresError, match="run the task `layers`"):
        draw_layer_curves(layers.assign(metric="AP"))


def test_time_against_bdrate(scores):
    scores.loc[scores["codec"] == "avif", "decode_seconds"] = np.nan
    key = primary_keys(scores)[0]
    bdrate = bdrate_frame(scores, "jpeg")
    bdrate["low"], bdrate["high"] = bdrate["bd_rate_percent"] - 3, bdrate["bd_rate_percent"] + 2
    figure = draw_time_against_bdrate(key.rows(scores), key.rows(bdrate))
    axes = figure.axes[0]
    marks = {text.get_text(): text.xy for text in axes.texts}
    assert {*marks} == {"jpeg", "webp", "diffusion"} and marks["jpeg"] == (0.004, 0.0)
    assert marks["webp"][1] == key.rows(bdrate).set_index("codec").loc["webp", "bd_rate_percent"] < 0
    assert figure.get_supxlabel() == "no BD-rate or time: avif" and axes.get_ylabel() == "BD-rate against jpeg (%)"
    assert len(axes.collections) == 2  # The intervals of webp and diffusion.


def test_bit_split_adds_up(parts):
    axes = draw_bit_split(parts).axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["elic 1", "elic 2", "jpeg 10"]
    widths = np.array([[bar.get_width() for bar in bars] for bars in axes.containers])
    np.testing.assert_allclose(widths.sum(axis=0), 100)
    assert widths[0, 2] == pytest.approx(10) and [text.get_text() for text in axes.texts][1] == "2,032 bits"
    with pytest.raises(ScoresError, match="missing: bits"):
        draw_bit_split(parts.drop(columns="bits"))


def test_the_report_shows_these_figures_and_tables(scores, layers, parts, complexity, tmp_path):
    frame = normalise(pd.concat([scores[scores["task"] == "yolox"], layers]))
    analyses = {"bit-split": parts, "complexity": complexity}
    page = write_report(tmp_path, frame, bdrate_frame(frame, "jpeg"), codec_analyses=analyses).read_text(encoding="utf-8")
    assert 'id="more"' in page and "kodak layers: features lost by layer" in page and "What the bits are spent on" in page
    assert "Parameters and multiply-accumulates" in page and "85.49" in page
    files = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"layers-kodak-layers.svg", "bit-split.png"} <= files and any(name.startswith("time-coco-yolox") for name in files)
    assert codec_names(frame)[0] == "jpeg"


def test_bit_maps_share_one_scale_and_show_every_position():
    rows = [(c, "1", "a.png", r, k, f * (r * 3 + k)) for c, f in (("slim", 1), ("elic", 2)) for r in range(2) for k in range(3)]
    figure = draw_bit_maps(pd.DataFrame(rows, columns=["codec", "point", "image", "row", "column", "bits"]))
    images = [axes.images[0] for axes in figure.axes if axes.images]
    assert [image.get_array().shape for image in images] == [(2, 3), (2, 3)]
    assert images[1].get_array()[1, 2] == 10 and images[0].norm is images[1].norm and images[0].norm.vmax == 10
    with pytest.raises(ScoresError, match="missing: row, column"):
        draw_bit_maps(pd.DataFrame(rows, columns=["codec", "point", "image", "y", "x", "bits"]))
    coarse = pd.DataFrame(
        [("slim", "1", "a.png", 0, 0, 12.0, 64)], columns=["codec", "point", "image", "row", "column", "bits", "stride"]
    )
    fine = pd.DataFrame(rows[:6], columns=["codec", "point", "image", "row", "column", "bits"]).assign(stride=32)
    both = draw_bit_maps(pd.concat([fine, coarse])).axes[0].images[0].get_array()
    np.testing.assert_allclose(both, [[3, 4, 2], [6, 7, 5]])


def test_energy_shares_add_up():
    rows = [("cadc", p, channel, e * (1 + int(p))) for p in "01" for channel, e in ((1, 6.0), (2, 3.0), (3, 1.0))]
    axes = draw_energy_shares(pd.DataFrame(rows, columns=["codec", "point", "channel", "energy"])).axes[0]
    heights = np.array([[bar.get_height() for bar in bars] for bars in axes.containers])
    np.testing.assert_allclose(heights, [[60, 60], [30, 30], [10, 10]])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["cadc\n0", "cadc\n1"]


def test_complexity_is_summed_by_stage(complexity):
    table = complexity_table(complexity)
    assert table["Part"].tolist() == ["vae", "lfgcm", "all", "unet"]
    assert table.loc[2, ["Parameters (M)", "MACs (G)"]].tolist() == ["85.49", "600.00"]


def test_realism_against_fidelity_reads_the_curves_at_one_rate():
    rows = [
        {"codec": codec, "point": str(k), "dataset": "clic", "task": "p", "metric": metric, "bpp": f * bpp, "value": v + f}
        for codec, f in (("a", 1.0), ("b", 1.5), ("far", 100.0))
        for metric, values in (("fid", (90, 60, 40)), ("lpips", (0.4, 0.3, 0.2)))
        for k, (bpp, v) in enumerate(zip((0.01, 0.02, 0.04), values))
    ]
    frame = normalise(pd.DataFrame(rows))
    axes = (figure := draw_realism_against_fidelity(frame, 0.02)).axes[0]
    marks = {text.get_text(): text.xy for text in axes.texts}
    assert marks["a"] == pytest.approx((61, 1.3)) and {*marks} == {"a", "b"} and 62 < marks["b"][0] < 91.5
    assert figure.get_supxlabel() == "not measured about this rate: far"
    (stem, title, _), *_ = extra_figures(frame, bdrate_frame(frame, "a").head(0))
    assert stem == "realism-clic-fid-lpips" and title == "clic: fid against lpips at 0.024 bpp"
