"""Curves as files and as SVG for a page."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from icmbench.results import fonts
from icmbench.results.curves import (
    COLOURS,
    LINES,
    MARKERS,
    codec_styles,
    curves_svg,
    draw_curves,
    figure_title,
    file_stem,
    save_figure,
    swatch_svg,
)
from icmbench.results.fonts import printable
from icmbench.results.scores import CurveKey, codec_names, curve_keys, normalise, primary_keys

SVG = "{http://www.w3.org/2000/svg}"


def draw_axes(scores, key):
    figure = draw_curves(scores, key)
    return figure, figure.axes[0]


def test_a_figure_shows_curves_ceiling_and_legend(scores):
    key = primary_keys(scores)[0]
    figure, axes = draw_axes(scores, key)
    curves = [line for line in axes.lines if line.get_marker() in MARKERS]
    assert len(curves) == 4 and axes.get_xscale() == "log"
    jpeg = scores[(scores["codec"] == "jpeg") & (scores["task"] == "yolox") & (scores["metric"] == "AP")]
    np.testing.assert_array_equal(curves[0].get_xydata(), jpeg[["bpp", "value"]].to_numpy())
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["jpeg", "webp", "avif", "diffusion"]
    assert axes.get_ylabel() == "AP (%)" and axes.get_title() == "coco, yolox (yolox-onnx): AP"
    assert any(set(line.get_ydata()) == {30.96} for line in axes.lines)  # The ceiling.
    assert "uncompressed 30.96" in [text.get_text() for text in axes.texts]
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert {"0.02", "0.1", "0.5"} <= {*ticks}


def test_bars_span_the_realisations_or_the_interval(scores):
    key = primary_keys(scores)[0]
    segments = [c.get_segments() for c in draw_axes(scores, key)[1].collections]
    assert len(segments) == 1 and len(segments[0]) == 3  # The three points of the codec with several seeds.
    rows = key.rows(scores)
    first = rows[(rows["codec"] == "diffusion") & (rows["bpp"] == 0.02)]["value"]
    assert segments[0][0][:, 1].tolist() == pytest.approx([first.min(), first.max()])
    scores["low"], scores["high"] = scores["value"] - 1, scores["value"] + 2
    jpeg = draw_axes(scores, key)[1].collections[0].get_segments()[0][:, 1]
    lowest = rows[rows["codec"] == "jpeg"]["value"].min()
    assert jpeg.tolist() == pytest.approx([lowest - 1, lowest + 2])


def test_agreement_limits_and_direction_are_written_on_the_figure(scores):
    agreement = next(key for key in curve_keys(scores) if key.reference == "original")
    assert draw_axes(scores, agreement)[1].get_ylabel() == "agreement: AP (%)" and "(agreement)" in figure_title(agreement)
    assert file_stem(agreement).endswith("-agreement")
    lpips = next(key for key in curve_keys(scores) if key.metric == "lpips")
    assert draw_axes(scores, lpips)[1].get_ylabel() == "lpips, less is better"
    limited = draw_axes(scores.assign(limited=True), agreement)[1]
    assert "limited: not reportable" in [text.get_text() for text in limited.texts]


def test_points_that_are_not_finite_are_left_out(scores):
    key = primary_keys(scores)[0]
    scores.loc[scores["codec"] == "avif", "value"] = np.inf
    scores.loc[(scores["codec"] == "jpeg") & (scores["point"] == "quality=35"), "value"] = np.nan
    figure, axes = draw_axes(scores, key)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["jpeg", "webp", "diffusion"]
    assert len(axes.lines[0].get_xdata()) == 3


def test_codecs_look_different_without_colour_and_none_is_plainly_dashed():
    looks = codec_styles([str(k) for k in range(56)])
    assert len({(look.colour, look.marker) for look in looks.values()}) == 56
    first = [*looks.values()][:5]
    assert len({(look.marker, str(look.line)) for look in first}) == 5
    assert "--" not in LINES and len(set(COLOURS)) == 7


def test_files_are_the_same_bytes_every_time(scores, tmp_path):
    key = primary_keys(scores)[0]
    paths = save_figure(draw_curves(scores, key), tmp_path / "a.b")
    assert [path.name for path in paths] == ["a.b.png", "a.b.svg", "a.b.pdf"]
    again = save_figure(draw_curves(scores, key), tmp_path / "again")
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    with Image.open(paths[0]) as image:
        assert image.size == (960, 760) and np.asarray(image.convert("L")).std() > 10
    assert ET.parse(paths[1]).getroot().tag == SVG + "svg"
    assert paths[2].read_bytes().startswith(b"%PDF") and b"CreationDate" not in paths[2].read_bytes()


def test_svg_for_a_page(scores):
    key = primary_keys(scores)[0]
    text = curves_svg(scores, key, codec_styles(codec_names(scores)))
    assert text == curves_svg(scores, key, codec_styles(codec_names(scores)))
    assert "http" not in text and "<style" not in text and "#000000" not in text
    root = ET.fromstring(text)
    dots = [element for element in root.iter("circle") if element.get("class") == "codec dot"]
    assert [dot.get("data-codec") for dot in dots] == [*"0000", *"11111", *"2222", *"333"]
    assert dots[0].findtext("title") == "jpeg, quality=24: AP 14.42 % at 0.24 bpp"
    # The dots lie on the markers that matplotlib drew.
    line = next(group for group in root.iter("g") if group.get("class") == "codec" and group.get("data-codec") == "1")
    drawn = [(float(use.get("x")), float(use.get("y"))) for use in line.iter("use")]
    placed = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in dots if dot.get("data-codec") == "1"]
    np.testing.assert_allclose(placed, drawn, atol=0.1)
    ids = re.findall(r'\bid="([^"]+)"', text + curves_svg(scores, primary_keys(scores)[1], codec_styles(codec_names(scores))))
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) <= set(ids)
    assert ET.fromstring(swatch_svg(codec_styles(["a"])["a"])).get("aria-hidden") == "true"


def test_hostile_names_stay_text(scores, tmp_path):
    hostile = '$\\frac{1}{2}$ <script>alert("1")</script>\n\x00_'
    for column in ("codec", "metric", "task"):
        scores[column] = scores[column].replace({"jpeg": hostile, "AP": hostile, "yolox": "_" + hostile})
    scores.loc[scores["codec"] == "webp", "codec"] = "_hidden"
    key = primary_keys(scores)[0]
    figure = draw_curves(scores, key)
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == [printable(hostile), "_hidden"]
    for path in save_figure(figure, tmp_path / file_stem(key)):
        assert path.stat().st_size > 1000
    text = curves_svg(scores, key, codec_styles(codec_names(scores)))
    ET.fromstring(text)
    assert "<script" not in text


def test_file_names_are_plain():
    assert file_stem(CurveKey("../..", "a b", "", "R@1_i2t", "labels")) == "a-b-R-1-i2t"
    assert file_stem(CurveKey("", "", "", "€", "labels")) == "curve"
    assert file_stem(CurveKey("d", "t", "m", "acc@0.5", "original")) == "d-t-m-acc-0.5-agreement"
    assert len(file_stem(CurveKey("d" * 300, "t", "", "m", ""))) == 100


def test_names_beyond_the_font_are_drawn_or_written_as_code_points(tmp_path, recwarn, monkeypatch):
    """Without a font for them, Chinese names become code points in print; a page keeps them as text."""
    monkeypatch.setattr(fonts, "_installed_fonts", dict)
    fonts._font_of.cache_clear()
    points = pd.DataFrame({"codec": ["\u65e5\u672c a"] * 2 + ["b"] * 2, "bpp": [1, 2, 1, 2], "value": [10, 20, 15, 25]})
    frame = normalise(points.assign(metric="AP", dataset="\u6570"))
    key, looks = curve_keys(frame)[0], codec_styles(codec_names(frame))
    figure = draw_curves(frame, key)
    save_figure(figure, tmp_path / "a", (".png", ".svg", ".pdf"))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["[U+65E5 U+672C] a", "b"]
    assert figure.axes[0].get_title() == "[U+6570]: AP" and "\u65e5\u672c a, 1: AP" in curves_svg(frame, key, looks)
    assert not recwarn.list
    fonts._font_of.cache_clear()


def test_a_font_that_has_the_characters_is_used(monkeypatch):
    serif = font_manager.findfont("DejaVu Serif")
    monkeypatch.setattr(fonts, "_installed_fonts", lambda: {"DejaVu Serif": serif})
    monkeypatch.setattr(fonts, "_characters_of", lambda path: frozenset(map(ord, "b" if path == serif else "a")))
    fonts._font_of.cache_clear()
    figure = Figure()
    texts = [figure.text(0, 0, text) for text in ("a", "ab")]
    fonts.use_fonts(figure)
    fonts._font_of.cache_clear()
    assert texts[0].get_fontfamily() == ["sans-serif"] and texts[1].get_fontfamily() == ["DejaVu Sans", "DejaVu Serif"]
