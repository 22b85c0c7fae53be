"""The discriminator of CADC's recipe: it learns to tell pictures apart, and pictures learn to pass it, each without the other."""

import torch
import torch.nn.functional as F

from icmbench.codecs.training.networks import Discriminator, hinge


def pictures():
    """(real, fake): smooth colour fields with noise, and the same without."""
    torch.manual_seed(0)
    fields = F.interpolate(torch.rand(8, 3, 4, 4), size=56, mode="bicubic", align_corners=False).clamp(0, 1)
    return (fields + 0.1 * torch.randn(8, 3, 56, 56)).clamp(0, 1), fields


def test_it_learns_what_is_real_and_a_picture_learns_to_pass():
    torch.manual_seed(0)
    judge = Discriminator("random", "cpu")
    assert {name.partition(".")[0] for name, _ in judge.named_parameters()} == {"heads"}
    real, fake = map(judge.tokens, pictures())
    optimizer = torch.optim.Adam(judge.parameters(), lr=1e-2)
    start = float(hinge(judge(real), judge(fake)).detach())
    for _ in range(150):
        optimizer.zero_grad()
        loss = hinge(judge(real), judge(fake))
        loss.backward()
        optimizer.step()
    assert 0.8 < start < 1.2 and float(loss.detach()) < 0.5 * start

    heads = {name: value.clone() for name, value in judge.state_dict().items()}
    optimizer.zero_grad()
    pixels = pictures()[1].requires_grad_()
    mover = torch.optim.Adam([pixels], lr=1e-2)
    before = -float(judge(judge.tokens(pixels), trained=False).mean().detach())
    for _ in range(20):
        mover.zero_grad()
        adversarial = -judge(judge.tokens(pixels), trained=False).mean()
        adversarial.backward()
        mover.step()
    assert float(adversarial.detach()) < before - 0.5
    assert all(parameter.grad is None for parameter in judge.parameters())
    assert all(torch.equal(heads[name], value) for name, value in judge.state_dict().items())
