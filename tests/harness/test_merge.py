"""`icmbench merge`: parts of an experiment that were computed apart equal the whole, and what does not fit is refused."""

import json
import pickle
import shutil

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from icmbench.harness.cli import main
from icmbench.harness.commands.computing import RunOptions
from icmbench.harness.commands.merging import merge
from icmbench.harness.commands.run import run
from icmbench.harness.config import plugins
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import load_experiment
from icmbench.harness.derive import tables
from icmbench.harness.derive.bound import Derived
from icmbench.harness.derive.merged_bench import MergedBench
from icmbench.harness.derive.merged_images import MergedImages
from icmbench.harness.derive.merging import plan_merge
from icmbench.harness.derive.recorded import read_run
from icmbench.harness.store.folder import Folder
from icmbench.harness.store.pack_export import export
from icmbench.harness.store.store import Store
from icmbench.results.report import write_report
from icmbench.tasks.base import DatasetError

TIMES = ["encode_seconds", "decode_seconds", "task_seconds"]
CODECS = [{"name": "shift"}, {"name": "jpeg", "points": [10, 30, 60, 90]}]
COLOUR = {"name": "mean-colour", "dataset": "photos", "model": {"name": "averager"}, "reference": "original"}
DISTANCE = {"name": "distance", "dataset": "photos"}


@pytest.fixture(autouse=True)
def blank_report(monkeypatch):
    """Reports are not drawn, which takes most of the time of a small run; the last test draws one."""

    def write(folder, *_):
        (folder / "report").mkdir()
        (folder / "report" / "index.html").write_text("blank")
        return folder / "report" / "index.html"

    monkeypatch.setattr(tables, "write_report", write)


@pytest.fixture
def part(tmp_path, experiment):
    """A function that computes an experiment in a folder, with tables if it is the whole, and returns the folder's path."""

    def compute(folder, shard=(1, 1), data=None, **sections):
        path = experiment(**{"codecs": CODECS, "tasks": [COLOUR, DISTANCE], "anchor": "jpeg", "bootstrap": 20} | sections)
        if data is not None:
            path.write_text(path.read_text().replace("images: photos", f"images: {data}"))
        result = run(load_experiment(path), tmp_path / folder, RunOptions(shard=shard), source=path)
        assert not result.missing and not result.outcome.failures
        return str(tmp_path / folder)

    return compute


@pytest.fixture
def unite(tmp_path, calls):
    """A function that merges folders into one and returns its path and what was said; it calls no codec and no model."""

    def call(*folders, out="merged", missing=(), **options):
        calls()
        result = merge(folders, str(tmp_path / out), base=tmp_path, **options)
        assert calls().keys() <= {"decompress shift", "decompress shaky"}  # The report's pictures.
        assert list(result.tables.missing) == list(missing)
        return tmp_path / out, result

    return call


def assert_equal_tables(first, second):
    """Scores without times, BD-rates and replicates are equal bit for bit."""
    frames = [pd.read_csv(f"{folder}/scores.csv").drop(columns=TIMES) for folder in (first, second)]
    pd.testing.assert_frame_equal(*frames, check_exact=True)
    assert frames[0].low.notna().any()
    frames = [pd.read_csv(f"{folder}/bdrate.csv") for folder in (first, second)]
    pd.testing.assert_frame_equal(*frames, check_exact=True)
    names = [sorted(name for name in Derived(Folder(folder)).names if "replicates" in name) for folder in (first, second)]
    assert names[0] == names[1] and len(names[0]) == 2
    for name in names[0]:
        frames = [pq.read_table(f"{folder}/{name}").to_pandas().drop(columns="key") for folder in (first, second)]
        pd.testing.assert_frame_equal(*frames, check_exact=True)


def test_halves_of_codecs_and_tasks_equal_the_whole(part, unite, tmp_path):
    whole = part("whole", shard=None)
    anchor, other = (part(f"codec{k}", codecs=[codec], anchor=name) for k, codec, name in zip("01", CODECS, (None, "jpeg")))
    merged, result = unite(anchor, other)
    assert result.notes == () and not result.left_out
    assert_equal_tables(whole, merged)
    halves = [part(f"task{k}", tasks=[task]) for k, task in enumerate((COLOUR, DISTANCE))]
    merged, _ = unite(*halves, out="tasks")
    assert_equal_tables(whole, merged)
    # A merged run is a run: it is merged again, packed, and goes on as any other.
    merged, _ = unite(str(merged), whole, out="twice", workers=2)
    assert_equal_tables(whole, merged)
    goes_on = run(load_experiment(merged / "experiment.yaml").model_copy(update={"folder": tmp_path}), merged)
    assert (goes_on.outcome.codec_images, goes_on.outcome.model_images) == (0, 0)
    assert_equal_tables(whole, merged)
    assert [p.label for p in export(str(merged), "jpeg", merged / "pack").points] == [f"quality={q}" for q in (10, 30, 60, 90)]


def test_points_of_one_codec_are_united(part, unite):
    points = [[6, 4], [4, 2], [1]]
    codecs = [[{"name": "shift", "points": each}, CODECS[1]] for each in points]
    whole = part("whole", shard=None, codecs=[{"name": "shift", "points": [6, 4, 2, 1]}, CODECS[1]])
    merged, result = unite(*(part(f"part{k}", codecs=each) for k, each in enumerate(codecs)))
    assert result.notes == ()
    assert_equal_tables(whole, merged)
    assert yaml.safe_load((merged / "experiment.yaml").read_text())["codecs"][0]["points"] == [6, 4, 2, 1]


@pytest.mark.parametrize("is_here", [True, False], ids=["labels here", "no dataset here"])
def test_shards_with_stores_of_their_own_equal_the_whole(part, unite, photos, is_here):
    whole = part("whole", shard=None, shard_size=1)
    shards = [part(f"shard{k}", shard=(k, 2), shard_size=1) for k in (1, 2)]  # Each reads five of the ten images.
    assert pq.read_table(f"{shards[0]}/images.parquet").column("source").null_count in (0, 5)
    if not is_here:
        photos.rename(photos.with_name("elsewhere"))
    merged, _ = unite(*shards)
    assert_equal_tables(whole, merged)
    images = pq.read_table(merged / "images.parquet")
    assert images.equals(pq.read_table(f"{whole}/images.parquet"))


def test_what_no_run_has_is_missing(part, unite):
    first = part("first", codecs=CODECS[:1], tasks=[COLOUR], anchor=None)
    second = part("second", codecs=[{"name": "jpeg", "points": [10]}], tasks=[DISTANCE])
    cells = [f"photos / jpeg quality=10 / block {k} / mean-colour" for k in range(3)]
    cells += [f"photos / shift bits={bits} / block {k} / distance" for bits in (2, 4, 6) for k in range(3)]
    _, result = unite(first, second, missing=cells)
    assert set(result.tables.scores.codec) == {"uncompressed", "shift", "jpeg"}
    assert result.notes == () and result.tables.table_spec.anchor == "jpeg"


def test_a_lacking_shard_is_no_smaller_set(part, unite, photos):
    sections = {"shard_size": 1, "tasks": [DISTANCE], "codecs": CODECS[1:]}
    first, again = part("first", shard=(1, 2), **sections), part("again", shard=(1, 2), **sections)
    missing = [f"photos / jpeg quality={q} / block {k} / distance" for q in (10, 30, 60, 90) for k in (1, 3, 5, 7, 9)]
    _, result = unite(first, again, out="here", missing=missing)
    assert not len(result.tables.scores)
    photos.rename(photos.with_name("elsewhere"))
    _, result = unite(first, again, missing=missing)
    assert not len(result.tables.scores), "the runs tell which images they did not read"


def test_different_images_are_refused_by_name_or_cut_to_the_common_ones(part, unite, photos, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(photos, changed)
    Image.new("RGB", (40, 60), (9, 99, 199)).save(changed / "1.png")
    (changed / "7.png").rename(changed / "renamed.png")
    (changed / "8.png").unlink()
    (changed / "9.png").unlink()
    first = part("first", codecs=CODECS[:1], anchor=None)
    second = part("second", codecs=CODECS[1:], data="changed")
    sentence = (
        r"first and .*second have different images in dataset 'photos': 1 of one name with other pixels \('1.png'\), "
        r"2 only in .*first \('8.png', '9.png'\); merge runs over the same images, or the 7 that they share by --common"
    )
    with pytest.raises(UserError, match=sentence):
        unite(first, second)
    merged, result = unite(first, second, common=True)
    assert result.notes == (f"dataset 'photos': 7 images in common, of 10 of {first}, 8 of {second}",)
    scores = result.tables.scores
    assert scores.limited.all() and (scores.expected == 7).all() and scores.images.nunique() == 1
    # The same as a run over these images.
    common = tmp_path / "common"
    shutil.copytree(photos, common, ignore=shutil.ignore_patterns("1.png", "8.png", "9.png"))
    whole = pd.read_csv(part("whole", shard=None, data="common") + "/scores.csv")
    ours = pd.read_csv(merged / "scores.csv")
    left = [*TIMES, "limited"]
    pd.testing.assert_frame_equal(whole.drop(columns=left), ours.drop(columns=left), check_exact=True)
    assert json.loads((merged / "environment.json").read_text())["datasets"]["photos"]["limit"] == 7
    equal, _ = unite(first, part("third", codecs=CODECS[1:]), common=True, out="equal")
    assert not pd.read_csv(equal / "scores.csv").limited.any()


def test_renamed_pictures_are_the_same_images(part, unite, photos, tmp_path):
    renamed = tmp_path / "renamed"
    shutil.copytree(photos, renamed)
    for path in [*renamed.iterdir()]:
        path.rename(path.with_name(f"picture {path.name}"))
    halves = part("first", codecs=CODECS[:1], anchor=None), part("second", codecs=CODECS[1:], data="renamed")
    merged, _ = unite(*halves)
    assert_equal_tables(part("whole", shard=None), merged)
    shutil.rmtree(photos)  # Of the two datasets that of the second run is here.
    merged, _ = unite(*halves, out="other")
    assert pq.read_table(merged / "images.parquet").column("id")[0].as_py() == "picture 0.png"
    assert_equal_tables(tmp_path / "whole", merged)


def test_one_label_for_two_codecs_or_tasks_is_refused(part, unite):
    def odd(habit, points=(6, 4)):
        return [{"name": "odd", "label": "mine", "points": [*points], "set": {"habit": habit}}]

    first, second = part("first", codecs=odd("one"), anchor=None), part("second", codecs=odd("two"), anchor=None)
    with pytest.raises(UserError, match=r"codec 'mine' at bits=2 is another one in .*second than in .*first: fingerprint is .*one"):
        unite(first, second)
    third = part("third", codecs=[{"name": "shift", "label": "mine"}], anchor=None)
    with pytest.raises(UserError, match=r"codec 'mine' is 'odd' in .*first and 'shift' in .*third: give one another `label`"):
        unite(first, third)
    seeded = part("seeded", codecs=[{"name": "shift", "label": "mine", "seeds": [0]}], anchor=None)
    with pytest.raises(UserError, match="codec 'mine' has `seeds` in one of"):
        unite(third, seeded)
    labels = (
        part("labels", tasks=[{**DISTANCE, "label": "a"}]),
        part("lift", tasks=[{"name": "lift", "dataset": "photos", "label": "a"}]),
    )
    with pytest.raises(UserError, match=r"task 'a' has another `name` in .*labels and .*lift, 'distance' and 'lift'"):
        unite(*labels)


def test_points_without_a_common_one_must_be_of_one_codec(part, unite, monkeypatch):
    """Encoders of two builds must not share a curve; a build is seen in a fact that does not follow from the rate point."""
    from harness_plugins import Shift

    from icmbench.codecs.base import fingerprint

    build = {"now": "a"}
    make = Shift.__init__

    def make_build(self, point, seed=0):
        make(self, point, seed)
        self.fingerprint = fingerprint(codec="shift", point=point, build=build["now"])

    monkeypatch.setattr(Shift, "__init__", make_build)
    first = part("first", codecs=[{"name": "shift", "points": [6]}], anchor=None)
    build["now"] = "b"
    second = part("second", codecs=[{"name": "shift", "points": [4]}], anchor=None)
    with pytest.raises(UserError, match=r'no point in common in .*first and .*second, and build is "a" in the one and "b" in'):
        unite(first, second)
    build["now"] = "a"
    merged, result = unite(first, part("third", codecs=[{"name": "shift", "points": [4]}], anchor=None))
    build["now"] = "c"  # The codec is another one here, so only its fingerprints can tell.
    merged, result = unite(first, str(merged.with_name("third")), out="elsewhere")
    assert set(result.tables.scores.point) == {"-", "bits=2", "bits=4"}


def test_codecs_models_and_data_may_be_absent(part, unite, photos, monkeypatch):
    whole = part("whole", shard=None)
    halves = [part(f"task{k}", tasks=[task]) for k, task in enumerate((COLOUR, DISTANCE))]
    load, absent = plugins.load, ["shift", "averager"]

    def load_present(kind, name, key):
        if name in absent:
            raise UserError(f"{key}: {name!r} is absent")
        return load(kind, name, key)

    monkeypatch.setattr(plugins, "load", load_present)
    shutil.rmtree(photos)
    merged, result = unite(*halves)
    assert_equal_tables(whole, merged)
    assert len(result.left_out) == 4 and any("'shift' is absent" in line for line in result.left_out)
    absent.append("mean-colour")
    with pytest.raises(UserError, match=r"tasks\.0: 'mean-colour' is absent"):
        unite(*halves, out="other")


def test_a_model_that_is_another_one_here_is_not_called(part, unite, monkeypatch):
    from harness_plugins import Averager, MeanColour

    whole = part("whole", shard=None)
    halves = [part(f"codec{k}", codecs=[codec], anchor=None) for k, codec in enumerate(CODECS)]
    monkeypatch.setattr(Averager, "__init__", lambda self: setattr(self, "fingerprint", "another"))
    merged, result = unite(*halves)
    scores = [pd.read_csv(f"{folder}/scores.csv").drop(columns=TIMES) for folder in (whole, merged)]
    pd.testing.assert_frame_equal(*scores)
    assert result.left_out == ["model 'averager' of task 'mean-colour': it has another fingerprint on this machine"]
    for folder in halves:
        shutil.rmtree(f"{folder}/store/contexts")
    with pytest.raises(AssertionError, match="no run has stored its context for these images and labels"):
        unite(*halves, out="without context")
    monkeypatch.setattr(MeanColour, "version", 2)
    with pytest.raises(UserError, match="task 'mean-colour' was predicted by version 1 of 'mean-colour', and here is version 2"):
        unite(*halves, out="other")


def test_two_realisations_are_never_mixed(part, unite):
    shaky = {"codecs": [{"name": "shaky", "points": [4]}], "anchor": None}
    first, second = part("first", tasks=[COLOUR], **shaky), part("second", tasks=[DISTANCE], **shaky)
    sentence = (
        "codec 'shaky bits=4': 10 images, '0.png' first, have other reconstructions in .*second than in .*first, and the tasks"
    )
    with pytest.raises(UserError, match=sentence):
        unite(first, second)
    both, again = part("both", shard=None, **shaky), part("again", shard=None, **shaky)
    for out, one, other in (("one", both, again), ("two", again, both), ("three", both, second)):
        merged, _ = unite(one, other, out=out)
        scores = [pd.read_csv(f"{folder}/scores.csv").drop(columns=TIMES) for folder in (one, merged)]
        pd.testing.assert_frame_equal(*scores)


def test_a_codec_that_decodes_otherwise_elsewhere_is_named(part, unite, monkeypatch):
    """A decoder may give other pixels on a GPU than on a CPU, although it is said to be deterministic."""
    from harness_plugins import Shift

    first = part("first", codecs=CODECS[:1], tasks=[COLOUR], anchor=None)
    decode = Shift.decompress
    monkeypatch.setattr(Shift, "decompress", lambda self, data: decode(self, data) ^ 1)
    second = part("second", codecs=CODECS[:1], tasks=[DISTANCE], anchor=None)
    with pytest.raises(
        UserError, match=r"codec 'shift bits=2': 10 images, '0.png' first, have other reconstructions in .*second than"
    ):
        unite(first, second)


def test_shards_of_a_shaky_codec_are_one_realisation(part, unite):
    shaky = {"codecs": [{"name": "shaky", "points": [4]}], "anchor": None}
    shards = [part(f"shard{k}", shard=(k, 2), shard_size=1, **shaky) for k in (1, 2)]
    _, result = unite(*shards)
    assert set(result.tables.scores.scored) == {10}


def test_sizes_from_elsewhere_are_found_by_what_the_runs_reported(part, unite, photos, tmp_path):
    """The codec `folder` finds streams by facts about files, which need not be on the merging machine."""
    made = tmp_path / "made" / "low"
    made.mkdir(parents=True)
    for path in photos.iterdir():
        Image.open(path).convert("L").convert("RGB").save(made / path.name)
    (tmp_path / "sizes.csv").write_text(
        "image,point,bytes\n" + "".join(f"{p.name},low,{100 + k}\n" for k, p in enumerate(photos.iterdir()))
    )
    codec = {"name": "folder", "points": ["low"], "set": {"path": "made", "sizes": "sizes.csv"}}
    sections = {"codecs": [codec], "anchor": None}
    whole = part("whole", shard=None, **sections)
    halves = [part(f"task{k}", shard=None, tasks=[task], **sections) for k, task in enumerate((COLOUR, DISTANCE))]
    shutil.rmtree(tmp_path / "made")
    merged, _ = unite(*halves)
    scores = [pd.read_csv(f"{folder}/scores.csv").drop(columns=TIMES) for folder in (whole, merged)]
    pd.testing.assert_frame_equal(*scores)
    for folder in halves:  # Nothing tells any more which stored streams are those of the images.
        (tmp_path / folder / "derived.json").unlink()
    unknown = [f"photos / folder low / block {k} / {task}" for task in ("mean-colour", "distance") for k in range(3)]
    unite(*halves, out="unknown", missing=unknown)


def test_labels_are_those_of_the_images_of_the_runs():
    class Labelled:
        ids = ("a", "b", "c", "d")

        def annotated(self, kind):
            return ["a", "c", "d"]

        def targets(self, kind, ids):
            return [{"of": image_id} for image_id in ids]

        def categories(self, kind):
            return [kind]

    images = MergedImages("photos", ["c", "b", "a"], {}, limit=3)
    view = images.view(Labelled())
    assert (view.annotated("class"), view.targets("class", ["c"]), view.categories("class")) == (
        ["c", "a"],
        [{"of": "c"}],
        ["class"],
    )
    assert (view.limit, view.ids, hasattr(view, "things")) == (3, ["c", "b", "a"], False)
    images.why = "datasets.photos.images: no such folder"
    with pytest.raises(DatasetError, match=r"'photos' is only known by what runs recorded of it .*no such folder.*--folder"):
        images.view(None).annotated("class")


def test_workers_get_the_merge_by_its_plan(part, tmp_path):
    folders = [part(f"codec{k}", codecs=[codec], anchor=None) for k, codec in enumerate(CODECS)]
    plan = plan_merge([read_run(folder, tmp_path) for folder in folders])
    bench = MergedBench(plan, Folder(tmp_path / "merged"), Store(tmp_path / "store"))
    copy = pickle.loads(pickle.dumps(bench))
    assert [each.fingerprint for each in copy.series] == [each.fingerprint for each in bench.series]
    assert copy.tasks["mean-colour"].fingerprint == bench.tasks["mean-colour"].fingerprint


def test_tolerated_failures_stay_failures(tmp_path, experiment, unite, photos, monkeypatch):
    monkeypatch.setenv("ICMBENCH_PICKY", "1")
    (photos / "5.png").write_bytes(b"no picture")

    def compute(name, **sections):
        both = [{"name": "picky"}, CODECS[1]]
        path = experiment(
            **{"codecs": both, "tasks": [COLOUR, DISTANCE], "anchor": "jpeg", "fail_on_error": 3, "bootstrap": 20} | sections
        )
        result = run(load_experiment(path), tmp_path / name, source=path)
        assert not result.missing and set(result.scores.failed) == {2 if "picky" in str(sections.get("codecs", both)) else 1}
        return str(tmp_path / name)

    whole = compute("whole")
    merged, _ = unite(compute("picky", codecs=[{"name": "picky"}], anchor=None), compute("jpeg", codecs=CODECS[1:]))
    assert_equal_tables(whole, merged)


def test_one_set_of_images_under_two_names_is_told(part, unite):
    other = {
        "datasets": {"pictures": {"kind": "images", "images": "photos"}},
        "tasks": [{**DISTANCE, "dataset": "pictures", "label": "d"}],
    }
    _, result = unite(part("first", tasks=[DISTANCE]), part("second", **other))
    assert result.notes == (
        "datasets 'photos' and 'pictures' hold the same images: give them one name to compare the codecs of both",
    )


def test_runs_with_one_store_share_it(part, unite, tmp_path):
    halves = [part(f"task{k}", tasks=[task], store="shared") for k, task in enumerate((COLOUR, DISTANCE))]
    merged, _ = unite(*halves)
    assert not (merged / "store").exists()
    assert json.loads((merged / "environment.json").read_text())["store"] == str(tmp_path / "shared")


def test_settings_are_the_first_runs_and_others_are_told(part, unite):
    first = part("first", tasks=[COLOUR], bootstrap=0)
    second = part("second", tasks=[DISTANCE], anchor="shift", method="akima")
    _, result = unite(first, second)
    assert result.notes == (
        f"bootstrap is 0 in {first} and 20 in {second}: the former counts",
        f"method is 'pchip' in {first} and 'akima' in {second}: the former counts",
        f"anchor is 'jpeg' in {first} and 'shift' in {second}: the former counts",
    )
    assert result.tables.table_spec.anchor == "jpeg" and result.tables.scores.low.isna().all()


def test_only_a_new_folder_is_merged_into(part, unite, tmp_path):
    first, second = part("first", codecs=CODECS[:1], anchor=None), part("second", codecs=CODECS[1:])
    with pytest.raises(UserError, match="is one of the runs that are merged"):
        unite(first, second, out="first")
    with pytest.raises(UserError, match="is named twice"):
        unite(first, str(tmp_path / "second" / ".." / "first"))
    part("other", name="other")
    with pytest.raises(UserError, match="belongs to another run or to a merge of other runs"):
        unite(first, second, out="other")
    with pytest.raises(UserError, match=r"nowhere: no run folder \(no whole environment.json\)"):
        unite(first, str(tmp_path / "nowhere"))
    merged, _ = unite(first, second)
    before = (merged / "scores.csv").read_bytes()
    merged, _ = unite(first, second)
    assert (merged / "scores.csv").read_bytes() == before
    with pytest.raises(UserError, match="belongs to another run or to a merge of other runs"):
        unite(second, first)


def test_the_command_prints_the_table_and_notes_and_draws_a_report(part, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tables, "write_report", write_report)
    monkeypatch.chdir(tmp_path)
    first = part("first", codecs=CODECS[:1], anchor=None)
    second = part("second", codecs=CODECS[1:], bootstrap=10)
    assert main(["merge", str(first), str(second), "--out", "merged"]) == 0
    captured = capsys.readouterr()
    assert "BD-rate against jpeg" in captured.out and "report: merged/report/index.html" in captured.out.replace(f"{tmp_path}/", "")
    assert f"bootstrap is 20 in {first} and 10 in {second}" in captured.err
