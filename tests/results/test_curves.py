"""Curves as files and as SVG for a page."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from icmbench.results.curves import COLOURS, LINES, MARKERS, draw, inline_svg, save, shown, stem, styles, swatch, title
from icmbench.results.scores import Key, codecs, keys, normalise, primary_keys

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def frame(scores):
    return normalise(scores)


def axes_of(frame, key):
    figure = draw(frame, key)
    return figure, figure.axes[0]


def test_what_a_figure_shows(frame):
    key = primary_keys(frame)[0]
    figure, axes = axes_of(frame, key)
    curves = [line for line in axes.lines if line.get_marker() in MARKERS]
    assert len(curves) == 4 and axes.get_xscale() == "log"
    jpeg = frame[(frame["codec"] == "jpeg") & (frame["task"] == "yolox") & (frame["metric"] == "AP")]
    np.testing.assert_array_equal(curves[0].get_xydata(), jpeg[["bpp", "value"]].to_numpy())
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["jpeg", "webp", "avif", "diffusion"]
    assert axes.get_ylabel() == "AP (%)" and axes.get_title() == "coco, yolox (yolox-onnx): AP"
    assert any(set(line.get_ydata()) == {30.96} for line in axes.lines)  # the ceiling
    assert "uncompressed 30.96" in [text.get_text() for text in axes.texts]
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert {"0.02", "0.1", "0.5"} <= {*ticks}


def test_bars_span_the_realisations_or_the_interval(frame):
    key = primary_keys(frame)[0]
    segments = [c.get_segments() for c in axes_of(frame, key)[1].collections]
    assert len(segments) == 1 and len(segments[0]) == 3  # three points of the seeded codec
    rows = key.rows(frame)
    first = rows[(rows["codec"] == "diffusion") & (rows["bpp"] == 0.02)]["value"]
    assert segments[0][0][:, 1].tolist() == pytest.approx([first.min(), first.max()])
    frame["low"], frame["high"] = frame["value"] - 1, frame["value"] + 2
    jpeg = axes_of(frame, key)[1].collections[0].get_segments()[0][:, 1]
    lowest = rows[rows["codec"] == "jpeg"]["value"].min()
    assert jpeg.tolist() == pytest.approx([lowest - 1, lowest + 2])


def test_agreement_limits_and_direction_are_written_on_the_figure(frame):
    agreement = next(key for key in keys(frame) if key.reference == "original")
    assert axes_of(frame, agreement)[1].get_ylabel() == "agreement: AP (%)" and "(agreement)" in title(agreement)
    assert stem(agreement).endswith("-agreement")
    lpips = next(key for key in keys(frame) if key.metric == "lpips")
    assert axes_of(frame, lpips)[1].get_ylabel() == "lpips, less is better"
    limited = axes_of(frame.assign(limited=True), agreement)[1]
    assert "limited: not reportable" in [text.get_text() for text in limited.texts]


def test_points_that_are_not_finite_are_left_out(frame):
    key = primary_keys(frame)[0]
    frame.loc[frame["codec"] == "avif", "value"] = np.inf
    frame.loc[(frame["codec"] == "jpeg") & (frame["point"] == "quality=35"), "value"] = np.nan
    figure, axes = axes_of(frame, key)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["jpeg", "webp", "diffusion"]
    assert len(axes.lines[0].get_xdata()) == 3


def test_codecs_look_different_without_colour_and_none_is_plainly_dashed():
    looks = styles([str(k) for k in range(56)])
    assert len({(look.colour, look.marker) for look in looks.values()}) == 56
    first = [*looks.values()][:5]
    assert len({(look.marker, str(look.line)) for look in first}) == 5
    assert "--" not in LINES and len(set(COLOURS)) == 7


def test_files_are_the_same_bytes_every_time(frame, tmp_path):
    key = primary_keys(frame)[0]
    paths = save(draw(frame, key), tmp_path / "a.b")
    assert [path.name for path in paths] == ["a.b.png", "a.b.svg", "a.b.pdf"]
    again = save(draw(frame, key), tmp_path / "again")
    for one, other in zip(paths, again, strict=True):
        assert one.read_bytes() == other.read_bytes()
    with Image.open(paths[0]) as image:
        assert image.size == (960, 760) and np.asarray(image.convert("L")).std() > 10
    assert ET.parse(paths[1]).getroot().tag == SVG + "svg"
    assert paths[2].read_bytes().startswith(b"%PDF") and b"CreationDate" not in paths[2].read_bytes()


def test_svg_for_a_page(frame):
    key = primary_keys(frame)[0]
    text = inline_svg(frame, key, styles(codecs(frame)))
    assert text == inline_svg(frame, key, styles(codecs(frame)))
    assert "http" not in text and "<style" not in text and "#000000" not in text
    root = ET.fromstring(text)
    dots = [element for element in root.iter("circle") if element.get("class") == "codec dot"]
    assert [dot.get("data-codec") for dot in dots] == [*"0000", *"11111", *"2222", *"333"]
    assert dots[0].findtext("title") == "jpeg, quality=24: AP 14.42 % at 0.24 bpp"
    # the dots lie on the markers that matplotlib drew
    line = next(group for group in root.iter("g") if group.get("class") == "codec" and group.get("data-codec") == "1")
    drawn = [(float(use.get("x")), float(use.get("y"))) for use in line.iter("use")]
    placed = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in dots if dot.get("data-codec") == "1"]
    np.testing.assert_allclose(placed, drawn, atol=0.1)
    ids = re.findall(r'\bid="([^"]+)"', text + inline_svg(frame, primary_keys(frame)[1], styles(codecs(frame))))
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) <= set(ids)
    assert ET.fromstring(swatch(styles(["a"])["a"])).get("aria-hidden") == "true"


def test_hostile_names_stay_text(frame, tmp_path):
    hostile = '$\\frac{1}{2}$ <script>alert("1")</script>\n\x00_'
    for column in ("codec", "metric", "task"):
        frame[column] = frame[column].replace({"jpeg": hostile, "AP": hostile, "yolox": "_" + hostile})
    frame.loc[frame["codec"] == "webp", "codec"] = "_hidden"
    key = primary_keys(frame)[0]
    figure = draw(frame, key)
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == [shown(hostile), "_hidden"]
    for path in save(figure, tmp_path / stem(key)):
        assert path.stat().st_size > 1000
    text = inline_svg(frame, key, styles(codecs(frame)))
    ET.fromstring(text)
    assert "<script" not in text


def test_file_names_are_plain():
    assert stem(Key("../..", "a b", "", "R@1_i2t", "labels")) == "a-b-R-1-i2t"
    assert stem(Key("", "", "", "€", "labels")) == "curve"
    assert stem(Key("d", "t", "m", "acc@0.5", "original")) == "d-t-m-acc-0.5-agreement"
    assert len(stem(Key("d" * 300, "t", "", "m", ""))) == 100
