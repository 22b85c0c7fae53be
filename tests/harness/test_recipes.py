"""The shipped recipes are found by name and have the papers' loss weights; missing files are named before the first step."""

from pathlib import Path

import pytest
import yaml

from icmbench.codecs.diffusion import models
from icmbench.codecs.diffusion.backbone import stable_diffusion
from icmbench.harness.cli import main
from icmbench.harness.commands.training import _plan_stages, train
from icmbench.harness.config import plugins
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.recipe import RECIPES, load_recipe, shipped_recipes

NAMES = ("cadc", "diff-icmh", "elic", "resulic", "slim")
# Loss weights by stage and point (specification, section 4). None: the term is not part of the loss.
WEIGHTS = {
    "elic": {("rounded", 0.016): {"mse": 0.016 * 255**2, "bpp": 1}},
    "diff-icmh": {
        ("high_rate", 2): {"eps": 1, "bpp": 2, "latent": 1, "semantic": 2},
        ("point", 32): {"eps": 1, "bpp": 32, "latent": 1, "semantic": 2},
    },
    "resulic": {
        ("latent", 36): {"eps": 1, "bpp": 24, "latent": 1, "mse": None, "lpips": None},
        ("latent", 1.5): {"bpp": 1, "mse": None},
        ("pixels", 36): {"eps": 1, "bpp": 36, "latent": 1, "mse": 1, "lpips": 0.4},
        ("pixels", 16): {"bpp": 16, "mse": 1, "lpips": 0.6},
        ("pixels", 6): {"bpp": 6, "lpips": 0.8},
    },
    "slim": {
        ("guided", 4): {"bpp": 4, "guide": 1, "eps": 1, "task": None},
        ("pixels", 4): {"bpp": 4, "mse": 1, "lpips": 1, "task": 0.1},
    },
    "cadc": {
        ("base", 2): {"bpp": 0.5, "mse": 2, "lpips": 1, "clip": 0.1, "auxiliary": None, "adversarial": None},
        ("target", 24): {"bpp": 24, "mse": 2, "lpips": 1, "clip": 0.1, "auxiliary": 1, "adversarial": 0.1},
    },
}
STEPS = {"diff-icmh": (200_000, 200_000), "resulic": (150_000, 100_000), "slim": (100_000, 100_000), "cadc": (120_000, 21_000)}
# Images of a step over all processes; only Diff-ICMH's are in a paper.
BATCHES = {"diff-icmh": (16, 16), "resulic": (4, 2), "slim": (4, 4), "cadc": (8, 8), "elic": (16, 16)}
SMALL = {  # Stand-ins for networks that are not on this machine.
    **{"profile": "tiny", "perceptual": "random", "classifier": "random", "clip_source": "random", "discriminator": "random"},
    **{"captions": "none", "n": 16, "m": 24, "slices": [8, 16]},
}


def test_shipped_recipes_are_listed_and_written_to_be_edited(tmp_path, capsys, monkeypatch):
    assert tuple(shipped_recipes()) == NAMES
    assert main(["list", "recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(NAMES) and all(len(line.split()) > 5 for line in lines)
    copy = tmp_path / "mine.yaml"
    assert main(["train", "resulic", "--write", str(copy)]) == 0
    assert copy.read_bytes() == (RECIPES / "resulic.yaml").read_bytes() and load_recipe(copy).folder == tmp_path
    assert main(["train", "slim", "--write", str(copy)]) == 2 and "resulic" in copy.read_text()
    assert "mine.yaml: cannot write the recipe" in capsys.readouterr().err
    assert main(["train", "resulik"]) == 2 and "did you mean 'resulic'" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert load_recipe(Path("resulic")).folder == tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_has_the_papers_settings(tmp_path, name):
    recipe = load_recipe(Path(name))
    objective = plugins.load("training", recipe.objective, "objective")
    stage_runs = list(_plan_stages(recipe, objective, tmp_path))
    assert set(recipe.points) == set(objective.default_points) == {run.point for run in stage_runs if run.last}
    assert tuple(stage["steps"] for stage in recipe.stages) == STEPS.get(name, tuple(stage["steps"] for stage in recipe.stages))
    assert tuple(stage["batch"] for stage in recipe.stages) == BATCHES[name]
    assert {run.stage.images_at_once(2) * 2 for run in stage_runs} == {*BATCHES[name]}
    models.save_backbone(stable_diffusion.random_backbone("tiny", 1), tmp_path / "backbone.safetensors")
    runs_by_name = {(run.name, run.point): run for run in stage_runs}
    for key, expected in WEIGHTS[name].items():
        options = {**runs_by_name[key].options, **SMALL, "backbone": tmp_path / "backbone.safetensors"}
        accepted = {option: value for option, value in options.items() if option in objective.__init__.__kwdefaults__}
        weights = objective(key[1], **accepted).weights
        assert {term: weights.get(term) for term in expected} == expected, key


@pytest.mark.parametrize("name", NAMES)
def test_what_a_shipped_recipe_lacks_is_said_before_the_first_step(tmp_path, name):
    copy = tmp_path / f"{name}.yaml"
    copy.write_text((RECIPES / f"{name}.yaml").read_text())
    content = yaml.safe_load(copy.read_text())
    for key in ("images", "tags", "captions", "masks", "labels"):
        if key not in content["data"]:
            continue
        missing = tmp_path / content["data"][key]
        with pytest.raises(UserError) as caught:
            train(load_recipe(copy), tmp_path / "run")
        assert str(caught.value) == f"data.{key}: no such file or folder: {missing}. Put it there, or name another"
        if missing.suffix:
            missing.write_text("{}")
        else:
            missing.mkdir(parents=True)
    assert not (tmp_path / "run").exists()
