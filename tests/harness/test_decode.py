"""`icmbench decode` takes from a stream what it states, and refuses options that differ before anything is loaded."""

import numpy as np
import pytest
from PIL import Image

from icmbench.codecs.bitstream import Container
from icmbench.codecs.cadc import Cadc
from icmbench.codecs.diff_icmh import DiffIcmh
from icmbench.codecs.elic import Elic
from icmbench.codecs.resulic import Resulic
from icmbench.codecs.slim import Slim
from icmbench.harness.cli import main

TINY = ["--set", "profile=tiny"]


def make_stream(codec, model, **fields):
    return Container(codec, model, 64, 64, b"payload", checksum=0, **fields).to_bytes()


def model_number(codec, point, sampler, profile="tiny"):
    return 1 + codec.points.index(point) | (codec.samplers.index(sampler) & 3) << 4 | ("sd21", "tiny").index(profile) << 6


@pytest.mark.parametrize("codec", [DiffIcmh, Resulic, Slim, Cadc])
@pytest.mark.parametrize("profile", ["sd21", "tiny"])
def test_every_point_sampler_and_profile_is_read_back(codec, profile):
    for point in codec.points:
        for sampler in codec.samplers:
            variant = codec.samplers.index(sampler) >> 2
            data = make_stream(codec.name, model_number(codec, point, sampler, profile), seed=7, portable=True, variant=variant)
            options = codec.stream_options(data)
            assert (options["point"], options["profile"], options["mode"]) == (point, profile, "portable")
            assert options.get("seed", 7) == 7
            chosen = {key: options.get(key) for key in ("sampler", "cdm", "eta", "ans", "captioner")}
            expected = {
                "resulic": {
                    "cdm": "cdm" in sampler,
                    "eta": int(sampler in ("cdm-stochastic", "ddpm", "ans-stochastic")),
                    "ans": "ans" in sampler,
                },
                "cadc": {"captioner": "none"} if sampler == "plain" else {},
            }.get(codec.name, {"sampler": sampler})
            assert chosen == {"sampler": None, "cdm": None, "eta": None, "ans": None, "captioner": None} | expected


def test_elic_states_its_point_and_mode():
    assert Elic.stream_options(make_stream("elic", 3)) == {"point": 0.016, "mode": "default"}
    assert Elic.stream_options(make_stream("elic", 0, portable=True)) == {"mode": "portable"}


@pytest.fixture
def no_loading(monkeypatch):
    """Fails a test in which weights are loaded or a hub is asked."""

    def refuse(*arguments, **options):
        raise AssertionError("something was loaded")

    monkeypatch.setattr("icmbench.codecs.diffusion.models.load_model", refuse)
    monkeypatch.setattr("icmbench.codecs.diffusion.backbone.files.WeightFiles.required_files", refuse)
    monkeypatch.setattr("icmbench.codecs.elic_model.load_network", refuse)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--point", "4"], "--point is 4, but the stream was made with 2"),
        (["--set", "profile=sd21"], "--set profile is 'sd21', but the stream was made with 'tiny'"),
        (["--set", "sampler=ddim"], "--set sampler is 'ddim', but the stream was made with 'ddpm'"),
        (["--set", "steps=9"], "--set steps is 9, but the stream was made with 20"),
        (["--set", "seed=1"], "--set seed is 1, but the stream was made with 0"),
        (["--set", "cfg=3"], "--set cfg is 3.0, but the stream was made with 5.0"),
        (["--set", "mode=portable"], "--set mode is 'portable', but the stream was made with 'default'"),
        (["--codec", "elic"], "the stream was made by diff-icmh, not by elic"),
        (["--codec", "resulic"], "the stream was made by diff-icmh, not by resulic"),
        (["--codec", "jpeg"], "not a whole JPEG stream"),
        (["--set", "profil=tiny"], "did you mean 'profile'?"),
    ],
)
def test_a_mismatch_is_said_before_anything_is_loaded(tmp_path, capfd, no_loading, arguments, words):
    (tmp_path / "a").write_bytes(make_stream("diff-icmh", model_number(DiffIcmh, 2, "ddpm")))
    code = main(["decode", *arguments, str(tmp_path / "a"), str(tmp_path / "a.png")])
    errors = capfd.readouterr().err
    assert code == 2 and f"{tmp_path / 'a'}: " in errors and words in errors and errors.count("\n") == 1


def test_an_unknown_codec_of_a_stream_is_named(tmp_path, capfd):
    (tmp_path / "a").write_bytes(make_stream("elsewhere", 1))
    assert main(["decode", str(tmp_path / "a"), str(tmp_path / "a.png")]) == 2
    assert "unknown codec 'elsewhere'" in capfd.readouterr().err


def test_a_tiny_stream_decodes_without_any_option(tmp_path, capfd):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    arguments = ["--codec", "diff-icmh", *TINY, "--point", "4", "--set", "steps=1", "--set", "sampler=ddim", "--set", "cfg=2.503"]
    assert main(["encode", *arguments, str(tmp_path / "a.png"), str(tmp_path / "a")]) == 0, capfd.readouterr().err
    assert main(["decode", str(tmp_path / "a"), str(tmp_path / "b.png")]) == 0, capfd.readouterr().err
    assert main(["decode", *arguments, str(tmp_path / "a"), str(tmp_path / "c.png")]) == 0, capfd.readouterr().err
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "c.png").read_bytes()


def test_elic_says_what_its_stream_states(tmp_path, capfd):
    (tmp_path / "a").write_bytes(make_stream("elic", 2))
    assert main(["decode", str(tmp_path / "a"), str(tmp_path / "b.png")]) == 2
    assert "elic needs weights" in (errors := capfd.readouterr().err) and "point 0.008" in errors
