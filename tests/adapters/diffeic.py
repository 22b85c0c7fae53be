"""DiffEIC by the authors' inference_partition.py alone; verify.py compares the adapter with it.

The configuration is theirs with fewer channels, one text encoder of 256 channels that open_clip can build, and no metrics, since
those would be fetched. Convolutions that training starts from zero get random weights, or the control module would do nothing.
"""

from __future__ import annotations

from pathlib import Path

SETTINGS = {"steps": 3, "seed": 7}


def prepare(folder):
    """A random model, split into the two checkpoints that the authors' script joins."""
    import inference_partition as script
    import torch

    torch.manual_seed(0)
    script.disable_xformers()
    config = script.OmegaConf.load(Path(script.__file__).with_name("configs") / "model" / "diffeic.yaml")
    params, small = config.params, {"model_channels": 64, "num_res_blocks": 1, "context_dim": 256}
    params.control_stage_config.params.update(small)
    params.unet_config.params.update(small)
    params.first_stage_config.params.ddconfig.update(ch=32, num_res_blocks=1)
    params.cond_stage_config.params.update(arch="ViT-S-32-alt", version=None)
    params.preprocess_config.params.update(enc_mid=[16, 16, 32, 32], N=32, M=64, prior_nc=16, slice_num=3, slice_ch=[8, 16, 40])
    params.update(sync_path=None, calculate_metrics={})
    model = script.instantiate_from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.05)
        for layer in [module for module in model.preprocess_model.encoder.modules() if isinstance(module, torch.nn.Conv2d)][-1:]:
            layer.weight.mul_(20)
    weights = model.state_dict()
    guided = {key: value for key, value in weights.items() if key.startswith(("control_model.", "preprocess_model."))}
    base = {key: value for key, value in weights.items() if key not in guided}
    Path(folder, "1_2_1").mkdir(exist_ok=True)
    torch.save({"state_dict": guided}, Path(folder, "1_2_1", "lc.ckpt"))
    torch.save({"state_dict": base}, Path(folder, "v2-1_512-ema-pruned.ckpt"))
    params.sync_path = str(Path(folder, "v2-1_512-ema-pruned.ckpt"))
    script.OmegaConf.save(config, Path(folder, "config.yaml"))
    checkpoints = {"stable_diffusion": Path(folder, "v2-1_512-ema-pruned.ckpt"), "guidance": Path(folder, "1_2_1", "lc.ckpt")}
    return {"point": 1, "options": {**checkpoints, "config": Path(folder, "config.yaml"), **SETTINGS}}


def direct(folder, image):
    """The authors' file and pixels, from their `process` with the model loaded as in their `main`."""
    import inference_partition as script
    import torch

    script.disable_xformers()
    model = script.instantiate_from_config(script.OmegaConf.load(Path(folder, "config.yaml")))
    weights = torch.load(Path(folder, "v2-1_512-ema-pruned.ckpt"), map_location="cpu")["state_dict"]
    weights.update(torch.load(Path(folder, "1_2_1", "lc.ckpt"), map_location="cpu")["state_dict"])
    script.load_state_dict(model, weights, strict=False)
    model.preprocess_model.update(force=True)
    model.freeze()
    padded, path = script.pad(image, scale=64), Path(folder, "stream")
    script.pl.seed_everything(SETTINGS["seed"])
    images, bits = script.process(model, [padded], "ddpm", SETTINGS["steps"], str(path))
    assert round(bits * padded.shape[0] * padded.shape[1] / 8) == path.stat().st_size
    return path.read_bytes(), images[0][: image.shape[0], : image.shape[1]]
