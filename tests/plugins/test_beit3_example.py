"""A model from another package: installed beside icmbench, found by its entry point and used like a built-in one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
tokenizers = pytest.importorskip("tokenizers")

PACKAGE = Path(__file__).parent / "beit3_example"
CAPTIONS = ["a giraffe by a tree", "a red bus on the street", "two people on a boat", " ".join(["a street"] * 60)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the package is installed, after it is built from its sources."""
    temporary = tmp_path_factory.mktemp("plugin")
    shutil.copytree(PACKAGE, temporary / "source", ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", temporary, temporary / "source"]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(temporary.glob("*.whl"))) as archive:  # A wheel of pure Python is installed by unpacking it.
        archive.extractall(temporary / "site")
    return temporary / "site"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, site: Path) -> Path:
    """A folder with a small checkpoint in the released layout and a vocabulary of whole words."""
    folder = tmp_path_factory.mktemp("beit3")
    words = ["<s>", "<pad>", "</s>", "<unk>", *sorted({word for caption in CAPTIONS for word in caption.split()})]
    vocabulary = tokenizers.models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(vocabulary)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "vocabulary.json"))
    sys.path.insert(0, str(site))
    try:
        from beit3_network import Beit3
    finally:
        sys.path.remove(str(site))
    torch.manual_seed(0)
    network = Beit3(len(words), width=64, inner=128, heads=4, layers=2, patch=16, positions=(4 * 4 + 3, 1024), out=32)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    torch.save({"model": network.state_dict()}, folder / "beit3.pth")
    return folder


def run(site: Path, *command: Any) -> str:
    """Output of a Python process that sees the installed package but not the folders of the repository."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, env=environment, cwd=site)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_listed_like_a_built_in_model(site: Path) -> None:
    listed = run(site, "-m", "icmbench.harness.cli", "list", "models")
    assert "beit3" in listed and "BEiT-3 image-text retrieval" in listed


def test_it_is_loaded_by_name_and_embeds_images_and_texts(site: Path, files: Path, shared: Path, tmp_path: Path) -> None:
    photos = sorted((shared / "data/coco/val2017").glob("*.jpg"))[:3]
    code = """
import json, sys
from pathlib import Path
import numpy as np
from PIL import Image
from icmbench.harness.config import options, plugins
model_class = plugins.load("models", "beit3", "model")
section, photos, captions = json.loads(sys.argv[1])
model = model_class(**options.bind(model_class, section, "model", Path.cwd()))
images = [np.asarray(Image.open(photo).convert("RGB")) for photo in photos]
np.savez(sys.argv[2], images=model.embed_images(images), texts=model.embed_texts(captions),
         first_text=model.embed_texts(captions[:1]), fingerprint=model.fingerprint, task=model.task)
"""
    options = {"path": str(files / "beit3.pth"), "tokenizer": str(files / "vocabulary.json"), "heads": 4, "batch_size": 2}
    run(site, "-c", code, json.dumps([options, [str(photo) for photo in photos], CAPTIONS]), tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as out:
        images, texts, first_text = out["images"], out["texts"], out["first_text"]
        facts = json.loads(str(out["fingerprint"]))
        assert str(out["task"]) == "retrieval"
    assert images.shape == (3, 32) and texts.shape == (4, 32) and images.dtype == texts.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([images, texts]), axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(first_text, texts[:1], atol=1e-6)
    assert len({row.tobytes() for row in (images @ texts.T).round(3)}) == 3, "similarities differ between the photographs"
    assert len(facts["files"]) == 2 and facts["torch"]


def test_the_network_equals_torchscales(files: Path, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchscale = pytest.importorskip("torchscale.model.BEiT3")
    from torchscale.architecture.config import EncoderConfig

    monkeypatch.syspath_prepend(site)
    from beit3_network import Beit3

    state = torch.load(files / "beit3.pth", weights_only=True)["model"]
    sizes = {"encoder_embed_dim": 64, "encoder_attention_heads": 4, "encoder_ffn_embed_dim": 128, "encoder_layers": 2}
    config = EncoderConfig(
        img_size=64, patch_size=16, vocab_size=len(state["beit3.text_embed.weight"]), multiway=True, normalize_output=True,
        no_output_layer=True, **sizes
    )  # fmt: skip
    reference = torchscale.BEiT3(config).eval()
    reference.load_state_dict({name.removeprefix("beit3."): value for name, value in state.items() if name.startswith("beit3.")})
    pixels, tokens = torch.randn(2, 3, 64, 64), torch.randint(0, 10, (2, 64))
    is_padding = torch.arange(64)[None] >= torch.tensor([[10], [40]])
    network = Beit3.from_state(state, 4).eval()
    with torch.inference_mode():
        images = reference(textual_tokens=None, visual_tokens=pixels, text_padding_position=None)["encoder_out"][:, 0]
        texts = reference(textual_tokens=tokens, visual_tokens=None, text_padding_position=is_padding)["encoder_out"][:, 0]
        expected_images, expected_texts = (
            torch.nn.functional.normalize(rows @ state[f"{head}_head.weight"].T, dim=-1)
            for head, rows in (("vision", images), ("language", texts))
        )
        torch.testing.assert_close(network.embed_images(pixels), expected_images, atol=1e-5, rtol=0)
        torch.testing.assert_close(network.embed_texts(tokens, is_padding), expected_texts, atol=1e-5, rtol=0)


def test_preprocessing_equals_torchvisions(site: Path, files: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    monkeypatch.syspath_prepend(site)
    from beit3_example import Beit3Retrieval

    model = Beit3Retrieval(files / "beit3.pth", files / "vocabulary.json", heads=4)
    photo = Image.open(sorted((shared / "data/coco/val2017").glob("*.jpg"))[0]).convert("RGB")
    resize = transforms.Resize((64, 64), interpolation=transforms.InterpolationMode.BICUBIC)
    pixels = transforms.Compose([resize, transforms.ToTensor(), transforms.Normalize(0.5, 0.5)])(photo)
    with torch.inference_mode():
        expected = model.network.embed_images(pixels[None]).numpy()
    np.testing.assert_allclose(model.embed_images([np.asarray(photo)]), expected, atol=1e-6)
