"""Rates that a codec estimates: named, hollow, and never in one BD-rate with real bytes."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from icmbench.results.bd import bd_rate
from icmbench.results.bootstrap import Point, draw_replicates
from icmbench.results.compare import compare
from icmbench.results.curves import codec_styles, curves_svg, draw_curves
from icmbench.results.figures import draw_layer_curves, draw_realism_against_fidelity, draw_time_against_bdrate
from icmbench.results.footnotes import Footnotes
from icmbench.results.published import reported_curves, with_reported
from icmbench.results.report import write_report
from icmbench.results.scores import ScoresError, curve_keys, curve_points, estimated_codecs, normalise, read_scores
from icmbench.results.tables import bdrate_frame, mean_frame, rate_frame
from icmbench.results.writers import bdrate_tables, scores_tables, write_csv

ANCHOR = [(0.1, 30), (0.2, 33), (0.4, 36), (0.8, 39)]
HALF = [(rate / 2, quality) for rate, quality in ANCHOR]
REASON = "the rate of vq is estimated and that of jpeg is of real bytes, which share no BD-rate"


def frame(datasets=("kodak",)):
    """jpeg of real bytes; `vq` and `vq2` with estimated rates, a half and a quarter of jpeg's; and the ceiling."""
    rows = [
        {"codec": codec, "point": str(k), "dataset": dataset, "task": "det", "metric": "AP", "unit": "%", "bpp": factor * bpp,
         "value": value, "rate_kind": kind, "reference": "labels", "decode_seconds": 1.0}
        for dataset in datasets
        for codec, factor, kind in (("jpeg", 1.0, ""), ("vq", 0.5, "estimated"), ("vq2", 0.25, "estimated"))
        for k, (bpp, value) in enumerate(ANCHOR)
    ]  # fmt: skip
    ceiling = [{**rows[0], "codec": "uncompressed", "point": "-", "bpp": None, "value": 40.0, "dataset": d} for d in datasets]
    return normalise(pd.DataFrame([*ceiling, *rows]))


def test_the_kind_of_a_rate_is_measured_by_default_and_none_for_the_originals():
    scores = frame()
    assert scores.groupby("codec")["rate_kind"].first().to_dict() == {
        "jpeg": "measured", "uncompressed": "", "vq": "estimated", "vq2": "estimated",
    }  # fmt: skip
    assert estimated_codecs(scores) == {"vq", "vq2"}
    assert curve_points(scores, "vq")["estimated"].all() and not curve_points(scores, "jpeg")["estimated"].any()
    assert (normalise(scores.drop(columns="rate_kind"))["rate_kind"].iloc[1:] == "measured").all()


def test_bd_rate_of_both_kinds_is_undefined_in_both_directions():
    for estimated, names in (((False, True), ("jpeg", "vq")), ((True, False), ("vq", "jpeg"))):
        result = bd_rate(ANCHOR, HALF, names=names, estimated=estimated)
        assert result.bd_rate_percent is None and result.bd_quality is None and not result.cross_checks
        assert result.reason == result.quality_reason == REASON
    assert bd_rate(ANCHOR, HALF, estimated=(True, True)).bd_rate_percent == pytest.approx(-50)


def test_the_bd_table_says_why_and_compares_estimated_with_estimated():
    table = bdrate_frame(frame(), "jpeg").set_index("codec")
    assert table[["bd_rate_percent", "bd_quality", "overlap", "pchip", "cubic"]].isna().all(axis=None)
    assert table.loc["vq", "note"] == f"undefined: {REASON}"
    assert table[["rate_kind", "anchor_rate_kind"]].drop_duplicates().to_numpy().tolist() == [["estimated", "measured"]]
    other = bdrate_frame(frame(), "vq").set_index("codec")
    assert other.loc["vq2", "bd_rate_percent"] == pytest.approx(-50)
    assert other.loc["vq2", "note"] == "estimated rates: neither codec writes real bytes"
    assert np.isnan(other.loc["jpeg", "bd_rate_percent"]) and other.loc["jpeg", "note"] == f"undefined: {REASON}"
    footnotes = Footnotes()
    rows = [row for _, row in bdrate_frame(frame(), "vq").iterrows()]
    assert [footnotes.undefined(rows[0], number) for number in ("BD-rate", "BD-quality")] == ["a", "a"]
    assert footnotes.mark(rows[0]) == "" and footnotes.mark(rows[1]) == "b"
    assert footnotes.lines() == [
        "a  undefined: one rate is estimated, the other is of real bytes",
        "b  both rates are estimated, not of real bytes",
    ]


def test_replicates_give_no_interval_of_both_kinds():
    points = [
        Point(codec, str(k), lambda weights, value=value: {"AP": value}, [bpp * factor * 100] * 3, [100] * 3)
        for codec, factor in (("jpeg", 1), ("vq", 0.5), ("vq2", 0.25))
        for k, (bpp, value) in enumerate(ANCHOR)
    ]
    replicates = {"det": draw_replicates(points, 3, ["AP"], count=5)}
    table = bdrate_frame(frame(), "vq", replicates=replicates).set_index("codec")
    assert table.loc["vq2", ["low", "high"]].tolist() == pytest.approx([-50, -50])
    assert table.loc["jpeg", ["low", "high", "quality_low", "quality_high", "undefined"]].isna().all()


def test_means_and_rates_say_it_too():
    scores = frame(("kodak", "clic"))
    means = mean_frame(bdrate_frame(scores, "vq")).set_index("codec")
    assert means.loc["vq2", "bd_rate_percent"] == pytest.approx(-50) and np.isnan(means.loc["jpeg", "bd_rate_percent"])
    assert means["rate_kind"].to_dict() == {"jpeg": "measured", "vq2": "estimated"}
    rates = rate_frame(scores).drop_duplicates("codec").set_index("codec")["rate_kind"]
    assert rates.to_dict() == {"jpeg": "measured", "vq": "estimated", "vq2": "estimated"}


def test_every_text_table_names_the_codecs_that_estimate():
    scores = frame(("kodak", "clic"))
    bdrate = bdrate_frame(scores, "vq")
    titles = []
    for title, table in [*bdrate_tables(scores, bdrate), *scores_tables(scores)]:
        titles.append(title)
        assert {*table["Codec"]} <= {"jpeg", "uncompressed", "vq (estimated rate)", "vq2 (estimated rate)"}, title
        assert "vq2 (estimated rate)" in {*table["Codec"]}, title
    assert len(titles) == 5 and titles[0].startswith("BD-rate (%) against vq (estimated rate).")


def test_estimated_points_are_hollow_and_the_legend_says_so():
    scores = frame()
    figure = draw_curves(scores, curve_keys(scores)[0])
    lines = {line.get_gid(): line for line in figure.axes[0].lines if line.get_gid()}
    assert [lines[f"codec{k}"].get_markerfacecolor() for k in range(3)] == ["#0072B2", "none", "none"]
    assert lines["codec1"].get_color() == lines["codec1"].get_markeredgecolor() == "#D55E00"
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["jpeg", "vq (estimated rate)", "vq2 (estimated rate)"]
    # Looks that a caller made without knowing of estimated rates do not fill the markers.
    drawn = draw_curves(scores, curve_keys(scores)[0], codec_styles(["jpeg", "vq", "vq2"])).axes[0].lines
    assert [line.get_markerfacecolor() for line in drawn if line.get_gid()] == ["#0072B2", "none", "none"]


def test_the_page_draws_them_hollow(tmp_path):
    scores = frame()
    looks = codec_styles(["jpeg", "vq", "vq2"], estimated_codecs(scores))
    svg = curves_svg(scores, curve_keys(scores)[0], looks)
    markers = re.findall(r'<g class="codec" data-codec="(\d)">.*?<use [^>]*style="([^"]*)"', svg, flags=re.DOTALL)
    filled = {int(codec): "fill: none" not in style and "fill-opacity: 0" not in style for codec, style in markers}
    assert filled == {0: True, 1: False, 2: False}
    assert "vq, 0: AP 30 % at 0.05 bpp (estimated rate)" in svg and "jpeg, 0: AP 30 % at 0.1 bpp<" in svg
    page = write_report(tmp_path, scores, bdrate_frame(scores, "jpeg")).read_text(encoding="utf-8")
    assert "<span>vq (estimated rate)</span>" in page and "<span>jpeg</span>" in page
    assert "the codec estimates its rate and writes no bytes" in page and REASON in page
    measured = scores[~scores["codec"].isin(["vq", "vq2"])]
    page = write_report(tmp_path, measured, bdrate_frame(measured, "jpeg")).read_text(encoding="utf-8")
    assert "stimated" not in page.replace("shown.estimated", "").replace('"estimated "', "")


def test_other_figures_are_hollow_too():
    scores = frame()
    key = curve_keys(scores)[0]
    axes = draw_time_against_bdrate(key.rows(scores), key.rows(bdrate_frame(scores, "vq"))).axes[0]
    marks = {text.get_text() for text in axes.texts}
    assert marks == {"vq (estimated rate)", "vq2 (estimated rate)"}
    assert {line.get_markerfacecolor() for line in axes.lines if line.get_linestyle() == "None"} == {"none"}
    assert axes.get_ylabel() == "BD-rate against vq (estimated rate) (%)"
    both = pd.concat([scores.assign(metric=metric, higher_is_better=False) for metric in ("fid", "lpips")])
    axes = draw_realism_against_fidelity(normalise(both[both["codec"] != "uncompressed"]), 0.1).axes[0]
    assert {text.get_text() for text in axes.texts} == {"jpeg", "vq (estimated rate)", "vq2 (estimated rate)"}
    assert [line.get_markerfacecolor() for line in axes.lines] == ["#0072B2", "none", "none"]
    layers = scores[scores["codec"] != "uncompressed"].assign(metric="layer1.0")
    panels = {axes.get_title(): axes for axes in draw_layer_curves(layers).axes if axes.get_title()}
    assert {*panels} == {"jpeg", "vq (estimated rate)", "vq2 (estimated rate)"}
    assert {line.get_markerfacecolor() for line in panels["vq (estimated rate)"].lines} == {"none"}
    assert "none" not in [line.get_markerfacecolor() for line in panels["jpeg"].lines]


def test_curves_made_elsewhere_state_it(tmp_path):
    path = tmp_path / "curves.csv"
    path.write_text("codec,rate_kind,bpp,AP\njpeg,,0.1,30\njpeg,measured,0.2,33\nvq,Estimated,0.1,31\nvq,estimated,0.2,34\n")
    assert read_scores(path)["rate_kind"].tolist() == ["measured", "measured", "estimated", "estimated"]
    path.write_text(path.read_text().replace("rate_kind,bpp", "rate_kind,rate"))
    assert estimated_codecs(read_scores(path)) == {"vq"}
    write_csv(frame(), tmp_path / "scores.csv")
    pd.testing.assert_frame_equal(read_scores(tmp_path / "scores.csv"), frame(), check_dtype=False)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("vq,guessed,0.1,30\nvq,,0.2,33\n", "line 2: column 'rate_kind' holds 'guessed'; write measured or estimated"),
        ("vq,estimated,0.1,30\nvq,,0.2,33\n", "codec 'vq' has both measured and estimated rates; give those that are estimated"),
    ],
)
def test_other_words_and_mixed_curves_are_refused(tmp_path, rows, message):
    path = tmp_path / "curves.csv"
    path.write_text("codec,rate_kind,bpp,AP\n" + rows)
    with pytest.raises(ScoresError, match=re.escape(message)) as error:
        read_scores(path)
    assert str(error.value).startswith(str(path))
    with pytest.raises(ScoresError, match="column 'rate_kind' holds 'guess'; write measured or estimated"):
        normalise(pd.DataFrame({"codec": ["a"], "bpp": [0.1], "metric": ["AP"], "value": [1.0], "rate_kind": ["guess"]}))


def test_published_curves_state_it(tmp_path):
    path = tmp_path / "curves.json"
    curve = {"codec": "VQ", "source": "Paper", "dataset": "kodak", "task": "det", "bpp": [0.01, 0.02], "metrics": {"AP": [20, 30]}}
    path.write_text(json.dumps({"curves": [curve | {"rate_kind": "estimated"}, curve | {"codec": "JPEG"}]}))
    assert reported_curves(path).groupby("codec")["rate_kind"].first().to_dict() == {
        "JPEG, Paper (reported)": "measured", "VQ, Paper (reported)": "estimated",
    }  # fmt: skip
    figure = draw_curves(frame(), curve_keys(frame())[0], reported=reported_curves(path))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "VQ, Paper (reported) (estimated rate)" in names and "JPEG, Paper (reported)" in names
    table = bdrate_frame(with_reported(frame(), reported_curves(path)), "jpeg").set_index("codec")
    assert "which share no BD-rate" in table.loc["VQ, Paper (reported)", "note"]
    path.write_text(json.dumps({"curves": [curve | {"rate_kind": "guess"}]}))
    with pytest.raises(ScoresError, match="curve 1: rate_kind is 'guess'; write measured or estimated"):
        reported_curves(path)


def test_compare_says_which_rates_are_estimated(tmp_path):
    for name, scores in (("a", frame()), ("b", frame().replace({"rate_kind": {"estimated": "measured"}}))):
        (tmp_path / name).mkdir()
        write_csv(scores, tmp_path / name / "scores.csv")
        (tmp_path / name / "environment.json").write_text('{"packages": {}}')
    assert "The rates of vq, vq2 are estimated, not measured in real bytes." in compare(tmp_path / "a", tmp_path / "a").sentences
    kinds = "The rates of vq are estimated in the {} run and of real bytes in the {}: do not compare them."
    assert kinds.format("first", "second") in compare(tmp_path / "a", tmp_path / "b").sentences
    assert kinds.format("second", "first") in compare(tmp_path / "b", tmp_path / "a").sentences
