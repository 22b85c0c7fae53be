"""The report: its content, and that it needs no other file and no network."""

import html.parser
import json
import re

import pandas as pd
import pytest

from icmbench.results.scores import ScoresError, normalise

from .pages import HOSTILE, report_of


class Parser(html.parser.HTMLParser):
    """Tags with their attributes, and the text outside script and style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"script", "style"} & {*self.open[-1:]}:
            self.text += data


def test_the_page_needs_no_other_file(scores, tmp_path):
    page = report_of(scores, tmp_path)
    assert "http:" not in page and "https:" not in page and "@import" not in page
    parser = Parser(page)
    links = [attributes["href"] for tag, attributes in parser.tags if tag == "a"]
    for link in links:
        assert link.startswith("#") or (tmp_path / "report" / link).is_file()
    assert not [tag for tag, attributes in parser.tags if tag in ("link", "iframe", "img") or (tag == "script" and attributes)]
    ids = [attributes["id"] for _, attributes in parser.tags if attributes.get("id")]
    assert len(ids) == len(set(ids)) and {link[1:] for link in links if link.startswith("#")} <= set(ids)
    files = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"index.html", "bdrate.md", "bdrate.tex", "scores.md", "scores.tex", "coco-yolox-yolox-onnx-AP.png"} <= files
    # Each of five keys has a curve and a time figure.
    assert sum(name.endswith(".svg") for name in files) == sum(name.endswith(".png") for name in files) == 10


def test_the_same_scores_give_the_same_bytes(few, tmp_path):
    assert report_of(few, tmp_path / "a") == report_of(few.copy(), tmp_path / "b")
    for path in (tmp_path / "a" / "report").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / "report" / path.name).read_bytes()


def test_agreement_has_a_section_of_its_own(scores, tmp_path):
    page = report_of(scores, tmp_path)
    sections = dict(re.findall(r'<section aria-labelledby="(\w+)">(.*?)</section>', page, re.DOTALL))
    assert [*sections][:3] == ["labels", "source", "original"]
    assert "This is agreement, not accuracy" in sections["original"] and "ssd" in sections["original"]
    assert "ssd" not in sections["labels"] and "yolox" not in sections["original"]


def test_limited_runs_and_failed_images_are_marked(scores, tmp_path):
    assert "not reportable" not in Parser(report_of(scores, tmp_path / "whole")).text
    scores.loc[scores["dataset"] == "imagenet", "limited"] = True
    broken = (scores["codec"] == "webp") & (scores["task"] == "yolox")
    scores.loc[broken, ["scored", "failed"]] = [70, 9]
    page = report_of(scores, tmp_path / "cut")
    assert re.search(r'class="banner" role="status">limited: not reportable', page)
    assert re.search(r'<td class="number  bad">9</td>', page)
    text = Parser(page).text
    assert text.count("limited: not reportable") > (scores["dataset"] == "imagenet").sum()
    assert "webp at quality=12: 9 of 79 images failed" in text
    assert "limited: not reportable. BD-rate" in (tmp_path / "cut" / "report" / "bdrate.tex").read_text()


def test_missing_numbers_have_their_reason(few, tmp_path):
    few.loc[(few["codec"] == "avif") & (few["task"] == "yolox"), "value"] -= 100
    text = Parser(report_of(few, tmp_path)).text
    assert "BD-rate undefined: no shared AP interval: jpeg spans" in text and "add a point of avif with AP above" in text
    assert "n/a" in text and "not reached" in text


def test_without_an_anchor_and_without_codecs(few, tmp_path):
    assert "No anchor was named" in report_of(few, tmp_path / "none", anchor=None)
    only_uncompressed = few[few["codec"] == "uncompressed"]
    assert "uncompressed" in report_of(only_uncompressed, tmp_path / "only", anchor=None)
    assert "All scores" in report_of(few.head(0), tmp_path / "empty", anchor=None)


def test_primary_metrics_are_chosen_by_task(scores, tmp_path):
    page = report_of(scores, tmp_path, primary={"fidelity": "lpips"})
    assert "coco, fidelity, lpips" in page and (tmp_path / "report" / "coco-fidelity-lpips.svg").is_file()
    with pytest.raises(ScoresError, match="no metric 'ssim'"):
        report_of(scores, tmp_path, primary={"fidelity": "ssim"})


def test_environment_is_read_from_the_run_folder(few, tmp_path):
    (tmp_path / "environment.json").write_text(json.dumps({"python": "3.11.7", "hardware": {"processor": "<Model> & co"}}))
    page = report_of(few, tmp_path)
    assert "3.11.7" in page and "&lt;Model&gt; &amp; co" in page
    assert "given here" in report_of(few, tmp_path, environment={"machine": "given here"})


def test_hostile_names_are_text(few, tmp_path):
    for column, name in (("codec", "webp"), ("task", "yolox"), ("metric", "AP"), ("point", "quality=20"), ("dataset", "coco")):
        few[column] = few[column].replace({name: HOSTILE})
    page = report_of(few, tmp_path, title=HOSTILE)
    parser = Parser(page)
    assert not [tag for tag, _ in parser.tags if tag == "img"]
    assert sum(tag == "script" for tag, _ in parser.tags) == 1 and "49" not in re.findall(r"<h1>(.*?)</h1>", page)[0]
    assert parser.text.count(HOSTILE) > 10


def test_equal_file_names_are_numbered(few, tmp_path):
    twin = few[few["dataset"] == "coco"].assign(dataset="COCO/")
    report_of(normalise(pd.concat([few, twin])), tmp_path)
    names = {path.name for path in (tmp_path / "report").glob("*.png")}
    assert {"coco-yolox-yolox-onnx-AP.png", "COCO-yolox-yolox-onnx-AP-2.png"} <= names
