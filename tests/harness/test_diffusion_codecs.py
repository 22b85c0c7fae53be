"""The four diffusion codecs in one experiment, with their tiny profiles."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from icmbench.harness.commands.run import run
from icmbench.harness.config.experiment import load_experiment

pytest.importorskip("diffusers")
pytest.importorskip("open_clip")


@pytest.mark.filterwarnings("ignore:.*random")
def test_four_codecs_stand_in_one_table(tmp_path, photos):
    """With random weights the run is complete, every codec has scores and a rate of real bits, and captions cost bits."""
    tiny = {"profile": "tiny", "weights": "random", "device": "cpu"}
    short = {"steps": 2}
    experiment = {
        "name": "diffusion",
        "datasets": {"photos": {"kind": "images", "images": str(photos)}},
        "limit": 2,
        "codecs": [
            {"name": "diff-icmh", "points": [2, 32], "set": tiny | short},
            {"name": "resulic", "points": [36], "set": tiny | short | {"residuals": "a barn"}},
            {"name": "slim", "points": [1], "set": tiny | short},
            {
                "name": "slim",
                "label": "slim, captioned",
                "points": [1],
                "set": tiny | short | {"captions": "a red barn in a field"},
            },
            {"name": "cadc", "points": [2], "set": tiny},
            {"name": "jpeg", "points": [10]},
        ],
        "tasks": [{"name": "distance", "dataset": "photos"}],
        "anchor": "jpeg",
    }
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    result = run(load_experiment(tmp_path / "experiment.yaml"), tmp_path / "run")
    assert not result.missing and not result.outcome.failures
    scores = pd.read_csv(tmp_path / "run" / "scores.csv")
    rows = scores[scores.metric == "distance"].set_index("codec")
    assert rows.index.value_counts().to_dict() == {
        "diff-icmh": 2, "resulic": 1, "slim": 1, "slim, captioned": 1, "cadc": 1, "jpeg": 1,
    }  # fmt: skip
    assert (
        (rows.scored == 2).all() and (rows.bpp > 0).all() and (rows.payload_bpp.dropna() < rows.bpp[rows.payload_bpp.notna()]).all()
    )
    assert rows.bpp["slim, captioned"] > rows.bpp["slim"]
    assert Path(result.report).exists()
