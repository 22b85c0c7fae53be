"""CADC's discriminator learns to tell real from fake pictures, and pictures learn to deceive it, without changing each other."""

import torch
import torch.nn.functional as F

from icmbench.codecs.training.loss_networks import Discriminator, hinge_loss


def pictures():
    """Real pictures, which are smooth colour fields with noise, and fake ones, the same fields without noise."""
    torch.manual_seed(0)
    fields = F.interpolate(torch.rand(8, 3, 4, 4), size=56, mode="bicubic", align_corners=False).clamp(0, 1)
    return (fields + 0.1 * torch.randn(8, 3, 56, 56)).clamp(0, 1), fields


def test_discriminator_learns_what_is_real_and_pictures_learn_to_deceive_it():
    torch.manual_seed(0)
    discriminator = Discriminator("random", "cpu")
    assert {name.partition(".")[0] for name, _ in discriminator.named_parameters()} == {"heads"}
    real, fake = map(discriminator.tokens, pictures())
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-2)
    start = float(hinge_loss(discriminator(real), discriminator(fake)).detach())
    for _ in range(150):
        optimizer.zero_grad()
        loss = hinge_loss(discriminator(real), discriminator(fake))
        loss.backward()
        optimizer.step()
    assert 0.8 < start < 1.2 and float(loss.detach()) < 0.5 * start

    heads = {name: value.clone() for name, value in discriminator.state_dict().items()}
    optimizer.zero_grad()
    pixels = pictures()[1].requires_grad_()
    pixel_optimizer = torch.optim.Adam([pixels], lr=1e-2)
    before = -float(discriminator(discriminator.tokens(pixels), train_heads=False).mean().detach())
    for _ in range(20):
        pixel_optimizer.zero_grad()
        adversarial = -discriminator(discriminator.tokens(pixels), train_heads=False).mean()
        adversarial.backward()
        pixel_optimizer.step()
    assert float(adversarial.detach()) < before - 0.5
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    assert all(torch.equal(heads[name], value) for name, value in discriminator.state_dict().items())
