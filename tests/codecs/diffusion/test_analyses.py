"""The papers' analyses: bits that add up to the streams, energies computed directly, and known operation counts."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from icmbench.codecs.base import CodecError
from icmbench.codecs.cadc import Cadc
from icmbench.codecs.classical import Jpeg
from icmbench.codecs.diff_icmh import DiffIcmh
from icmbench.codecs.diffusion.analyses import bit_map, bit_split, channel_energy, complexity
from icmbench.codecs.resulic import Resulic
from icmbench.codecs.slim import Slim


def test_bit_split_adds_up_to_the_streams(tiny, photo, tmp_path):
    images = {"a": photo[:128, :192], "b": photo[128:256, :64]}
    (tmp_path / "words.txt").write_text("door\nhouse\nwall")
    codecs = [tiny(point, vocabulary=tmp_path / "words.txt", tags=["door", "wall"]) for point in (2, 32)]
    table = bit_split(codecs, images)
    assert list(table.columns) == ["codec", "point", "part", "bits", "bpp", "total_bpp", "share"]
    assert list(table["part"][:4]) == ["header", "z", "y", "text"]
    streams = [codecs[0].compress(image) for image in images.values()]
    first = table[table["point"] == "lambda=2"].set_index("part")
    assert first["bits"].sum() * 2 == 8 * sum(map(len, streams))
    assert first.loc["text", "bits"] == np.mean([codecs[0].rate_breakdown(data)["text"] for data in streams]) == 32
    assert first["total_bpp"].iloc[0] == pytest.approx(8 * sum(map(len, streams)) / (128 * 192 + 128 * 64))
    assert first["share"].sum() == pytest.approx(1) and np.isnan(first.loc["header", "share"])
    with pytest.raises(CodecError, match="rate_breakdown"):
        bit_split([Jpeg(50)], images)


def test_bit_map_sums_to_the_payload(tiny, photo):
    codec, image = tiny(), photo[:200, :320]
    table = bit_map(codec, {"a": image})
    rates = codec.rate_breakdown(codec.compress(image))
    bits = table.groupby("part")["bits"].sum()
    assert bits["y"] == pytest.approx(rates["y"], rel=0.03)
    assert bits.sum() == pytest.approx(rates["y"] + rates["z"], rel=0.03)
    of_y = table[table["part"] == "y"]
    assert len(of_y) == 16 * 20 and set(of_y["stride"]) == {16} and (of_y["row"].max(), of_y["column"].max()) == (15, 19)


def test_bit_map_shows_where_the_bits_are(tiny, photo):
    """Noise in one corner of the picture changes the bits there most."""
    image = photo[:256, :256].copy()
    before = bit_map(tiny(), {"a": image})
    image[32:64, 208:240] = np.random.default_rng(0).integers(0, 256, (32, 32, 3))
    changed = (bit_map(tiny(), {"a": image})["bits"] - before["bits"]).abs()[before["part"] == "y"]
    most_changed = before.loc[changed.idxmax()]
    assert 1 <= most_changed["row"] <= 4 and 12 <= most_changed["column"] <= 15


@pytest.mark.filterwarnings("ignore:.*random")
def test_channel_energy_is_the_variance_of_the_hint(picture):
    codec = Cadc(2, profile="tiny", weights="random", device="cpu")
    image = picture(200, 300)
    table = channel_energy([codec], {"a": image})
    request = codec._request(codec.compress(image))
    hint = request.model.hint(*request.model.latents(request.container, request.data))[0, :, :25, :38]
    expected = hint.numpy().var((1, 2))
    np.testing.assert_allclose(table["energy"], expected[:4], rtol=1e-4)
    np.testing.assert_allclose(table["share"], expected[:4] / expected.sum(), rtol=1e-4)
    assert list(table["channel"]) == [1, 2, 3, 4]


def counted(codec, **options) -> pd.DataFrame:
    return complexity(codec, **options).set_index(["stage", "part"])


def test_counts_on_the_meta_device_equal_counts_in_memory(tiny):
    """Counting runs on the meta device, without values; networks with values do as many operations."""
    model, _ = tiny().networks()
    # The counter does not know the fused attention of the CPU, so this turns it off.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops:
        model.backbone.decode(torch.zeros(1, 4, 16, 24))
    table = counted(tiny(), height=128, width=192)
    assert table.loc[("decode", "VAE decoder"), "gmac"] == pytest.approx(flops.get_total_flops() / 2e9)
    steps = table.loc[("decode", "UNet and control")]
    assert steps["calls"] == 2
    networks = (model.backbone.unet, model.control)
    assert steps["parameters"] == pytest.approx(sum(p.numel() for net in networks for p in net.parameters()), rel=1e-3)


@pytest.mark.parametrize(
    ("codec", "calls", "millions"), [(Cadc, 1, 866.82), (Slim, 3, 920.7), (Resulic, 2, 920.7), (DiffIcmh, 50, 1239.9)]
)
def test_full_profiles(codec, calls, millions):
    table = counted(codec(profile="sd21", weights="random", device="cpu"))
    steps = table.loc[("decode", "UNet and control")]
    assert steps["calls"] == calls
    assert steps["parameters"] / 1e6 == pytest.approx(millions, rel=0.01)
    assert table.loc[("decode", "VAE decoder"), "parameters"] / 1e6 == pytest.approx(49.49, abs=0.01)
    assert (("encode", "VAE encoder") in table.index) == (codec is not Cadc)
    print(table[["parameters", "calls", "gmac"]].to_string(), table.groupby("stage")["gmac"].sum().to_dict())


def test_captions_cost_the_auxiliary_decoder(picture):
    table = counted(Cadc(profile="tiny", weights="random", device="cpu", captioner=lambda image: "a door"))
    assert table.loc[("decode", "auxiliary decoder"), "gmac"] > 0
