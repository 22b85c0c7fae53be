"""The error for a bad experiment file names in one sentence the key and what to write instead."""

from pathlib import Path

import pytest

from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import load_experiment
from icmbench.harness.config.options import bind

GOOD = """
name: small
datasets: {photos: {kind: images, images: photos}}
codecs: [{name: jpeg, points: [10, 20]}]
tasks: [{name: fidelity, dataset: photos}]
anchor: jpeg
"""


def load(tmp_path: Path, text: str):
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    return load_experiment(path)


def test_labels_default_to_names_and_paths_start_at_the_file(tmp_path):
    experiment = load(tmp_path, GOOD)
    assert [section.label for section in experiment.codecs] == ["jpeg"]
    assert [section.label for section in experiment.tasks] == ["fidelity"]
    assert experiment.folder == tmp_path
    assert experiment.shard_size == 32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("points:", "pionts:"), ["codecs.0", "'pionts'", "did you mean 'points'?"]),
        (("anchor:", "ancor:"), ["'ancor'", "did you mean 'anchor'?"]),
        (("dataset: photos", "dataset: photo"), ["task 'fidelity'", "'photo'", "did you mean 'photos'?"]),
        (("anchor: jpeg", "anchor: jpg"), ["anchor", "'jpg'", "did you mean 'jpeg'?"]),
        (("kind: images, ", ""), ["photos needs a `kind`, a name"]),
        (("{name: jpeg, points: [10, 20]}", "{name: jpeg}, {name: jpeg}"), ["two codecs are labelled 'jpeg'"]),
        (("name: jpeg,", "name: jpeg, label: uncompressed,"), ["'uncompressed' is taken"]),
        (("[10, 20]", "20"), ["codecs.0.points", "list"]),
        (("name: small", "name: [small"), ["not valid YAML"]),
        ((GOOD, "- a list"), ["is a mapping"]),
        (("kind: images", "kind: 3"), ["photos needs a `kind`, a name"]),
        (("[10, 20]", "[]"), ["codecs.0.points", "at least 1"]),
        (("anchor: jpeg", "anchor: jpeg\nname: again"), ["the key 'name' is given twice"]),
        (("anchor: jpeg", "1: x"), ["unknown key '1'"]),
        (("anchor: jpeg", "fail_on_error: .nan"), ["fail_on_error", "a count of images"]),
        (("anchor: jpeg", "folder: /tmp"), ["unknown key 'folder'"]),
    ],
)
def test_errors_name_the_key_and_the_remedy(tmp_path, change, words):
    with pytest.raises(UserError) as error:
        load(tmp_path, GOOD.replace(*change))
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_missing_experiment_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.yaml: cannot read"):
        load_experiment(tmp_path / "absent.yaml")


class Plugin:
    source = "Get it from its authors."

    def __init__(
        self, point: int, images: Path, strength: int = 1, mask: Path | None = None, weights: str | Path | None = None
    ) -> None: ...


def test_options_are_checked_against_the_signature(tmp_path):
    (tmp_path / "here").mkdir()
    bound = bind(Plugin, {"images": "here", "strength": "3"}, "datasets.x", tmp_path, reserved=("point",))
    assert bound == {"images": tmp_path / "here", "strength": 3}
    for options, words in [
        ({"images": "here", "strenght": 1}, ["datasets.x", "'strenght'", "did you mean 'strength'?"]),
        ({"images": "nowhere"}, ["datasets.x.images", str(tmp_path / "nowhere"), "Get it from its authors."]),
        ({"images": "here", "mask": "no.png"}, ["datasets.x.mask", "no.png"]),
        ({"images": "here", "strength": "much"}, ["datasets.x.strength", "integer"]),
        ({}, ["datasets.x.images", "required"]),
    ]:
        with pytest.raises(UserError) as error:
            bind(Plugin, options, "datasets.x", tmp_path, reserved=("point",))
        for word in words:
            assert word in str(error.value)


def test_an_option_that_is_a_name_or_a_path(tmp_path):
    (tmp_path / "w.pth").touch()
    for value, expected in [
        ("w.pth", tmp_path / "w.pth"),
        ("some/model", "some/model"),
        ("w-{point}.pth", str(tmp_path / "w-{point}.pth")),
        (None, None),
    ]:
        options = {"images": ".", "weights": value}
        assert bind(Plugin, options, "x", tmp_path, reserved=("point",))["weights"] == expected


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi")),
        "a: &a [*a]",
        "a: " + "[" * 5000,
    ],
)
def test_documents_that_expand_without_end_are_refused(tmp_path, text):
    with pytest.raises(UserError, match=r"expand to more than|not valid YAML"):
        load(tmp_path, text)
