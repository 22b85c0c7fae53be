"""A single file of a run folder is flipped, cut, swapped, exchanged for an older copy or deleted: no command prints another number.

`tox run -e soak` sets ICMBENCH_FUZZ, and then there are 1,000 corruptions instead of a few.
"""

import functools
import os
import random
import shutil

import pandas as pd
import pytest

from icmbench.harness.cli import main
from icmbench.harness.commands.computing import RunOptions
from icmbench.harness.commands.run import run
from icmbench.harness.config.experiment import load_experiment
from icmbench.results import report

TRIALS = 1000 if os.environ.get("ICMBENCH_FUZZ") else 25
TIMES = ["encode_seconds", "decode_seconds", "task_seconds"]
CODECS = [{"name": "shift", "label": "anchor", "points": [6, 4, 3, 2]}, {"name": "picky", "points": [6, 5, 4, 3]}]
PARTS = 5  # Trials are spread over so many tests, which several workers share.


def flip(path, chance, others, older):
    data = bytearray(path.read_bytes())
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)


def cut(path, chance, others, older):
    path.write_bytes(path.read_bytes()[: chance.randrange(max(1, path.stat().st_size))])


def swap(path, chance, others, older):
    alike = [other for other in others if other.suffix == path.suffix and other != path]
    if alike:
        other = chance.choice(alike)
        path.write_bytes(other.read_bytes()) if chance.random() < 0.5 else other.write_bytes(path.read_bytes())


def take_older_copy(path, chance, others, older):
    if older.exists():
        shutil.copyfile(older, path)


def delete(path, chance, others, older):
    path.unlink()


@pytest.fixture
def without_figures(monkeypatch):
    """Figures take most of a report's time, and hold no number that is compared here."""
    made = functools.cache(lambda: results(*calls[0]))
    calls, results = [], report._results
    monkeypatch.setattr(report, "_results", lambda *arguments: (calls.append(arguments), made())[1])
    monkeypatch.setattr(report, "write_figures", lambda *arguments: [])


@pytest.mark.parametrize("part", range(PARTS))
def test_no_number_changes_without_a_word(tmp_path, experiment, capfd, part, monkeypatch, without_figures):
    path = experiment(codecs=CODECS, anchor="anchor", bootstrap=20)
    older, whole, folder = (tmp_path / name for name in ("older", "whole", "run"))
    fewer = [{**codec, "points": codec["points"][:3]} for codec in CODECS]
    run(load_experiment(experiment(codecs=fewer, anchor="anchor", bootstrap=20, limit=7)), older, RunOptions(images=2))
    path = experiment(codecs=CODECS, anchor="anchor", bootstrap=20)
    run(load_experiment(path), folder, RunOptions(images=2), source=path)
    run(load_experiment(path), folder, RunOptions(images=2), source=path)
    shutil.copytree(folder, whole)

    def call(*arguments):
        capfd.readouterr()
        code = main([*map(str, arguments)])
        printed = capfd.readouterr()
        assert "Traceback" not in printed.err and "defect" not in printed.err, printed.err
        return code, printed.out

    def numbers(name):
        if name == "bdrate":
            code, printed = call("bdrate", folder / "scores.csv", "--anchor", "anchor")
            return code, printed
        code, _ = call(*{"report": ["report", folder], "run": ["run", path, "--out", folder, "--images", "2"]}[name])
        if code != 0:
            return code, None
        tables = [pd.read_csv(folder / "bdrate.csv")]
        tables += [pd.read_csv(folder / "scores.csv").drop(columns=TIMES)] if name == "run" else []
        return code, [table.to_csv(index=False) for table in tables]

    expected = {name: numbers(name) for name in ("report", "bdrate", "run")}
    assert all(code == 0 for code, _ in expected.values())
    chance = random.Random(part)
    refused = 0
    for trial in range(TRIALS // PARTS):
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        files = sorted(file for file in folder.rglob("*") if file.is_file() and "report" not in file.relative_to(folder).parts)
        victim = chance.choice(files)
        corruption = chance.choice([flip, cut, swap, take_older_copy, delete])
        corruption(victim, chance, files, older / victim.relative_to(folder))
        name = chance.choice(["report", "bdrate", "run"])
        code, result = numbers(name)
        where = f"trial {trial} of part {part}: {corruption.__name__} of {victim.relative_to(folder)}, then {name}"
        assert code in (0, 1, 2), where
        assert code != 0 or result == expected[name][1], where
        refused += code != 0
    print(f"{TRIALS // PARTS} corruptions, {refused} refused, the others recomputed or without effect")
