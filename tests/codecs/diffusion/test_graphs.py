"""CUDA graphs and compiled networks compute what the plain evaluation computes. Needs a GPU, or minutes."""

import os

import pytest
import torch

from icmbench.codecs.diffusion.backbone import graphs
from icmbench.codecs.diffusion.sampling import samplers


def run(model, evaluate, device: str) -> list[torch.Tensor]:
    """Three predictions by one GuidedPredictor; the first and the last have the same inputs."""
    generator = torch.Generator().manual_seed(0)
    hint, first, second = (torch.randn(2, 4, 8, 8, generator=generator).to(device) for _ in range(3))
    contexts = model.backbone.embed(["cat", "dog", ""])
    with torch.no_grad():
        predict = samplers.GuidedPredictor(model.backbone, model.control, hint, contexts[:2], contexts[2:], 5.0, run=evaluate)
        return [predict(first, 900).clone(), predict(second, 100).clone(), predict(first, 900).clone()]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_graph_equals_plain(weights_folder, recwarn):
    from icmbench.codecs.diffusion import models
    from icmbench.codecs.diffusion.backbone.files import WeightFiles

    model = models.load_model(models.DIFF_ICMH, WeightFiles("diff-icmh", "tiny", weights_folder, None), 2, "float32", "cuda")
    plain = run(model, samplers.evaluate_unet, "cuda")
    captured = run(model, graphs.speed_up(samplers.evaluate_unet, True, False), "cuda")
    assert not [warning for warning in recwarn if "CUDA graph" in str(warning.message)]
    for ours, theirs in zip(captured, plain):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(not os.environ.get("ICMBENCH_SLOW"), reason="compiles for minutes; set ICMBENCH_SLOW=1")
def test_compiled_equals_plain(model):
    plain = run(model, samplers.evaluate_unet, "cpu")
    compiled = run(model, graphs.speed_up(samplers.evaluate_unet, False, True), "cpu")
    for ours, theirs in zip(compiled, plain):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
