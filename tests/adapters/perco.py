"""PerCo (SD) by the authors' functions alone; verify.py compares the adapter with them.

Their command-line tool resizes images to 512 by 512, so `direct` calls what its `compress` and `decompress` call, in their order.
The pipeline and BLIP-2 are built of the same classes with random weights, and their tokenizers know single characters only.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

STEPS, RATE = 2, 0.0313
HEADS = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32}


def prepare(folder):
    """A random pipeline and a random captioner, saved in their libraries' formats."""
    script = _script()
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler
    from hyper_encoder import HyperEncoder
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
    from transformers.models.clip.tokenization_clip import bytes_to_unicode
    from unet_2d_perco import UNet2DConditionModel

    torch.manual_seed(0)
    characters = list(bytes_to_unicode().values())
    words = [*characters, *[character + "</w>" for character in characters], "<|startoftext|>", "<|endoftext|>"]
    files = Path(folder, "vocab.json"), Path(folder, "merges.txt")
    files[0].write_text(json.dumps({word: index for index, word in enumerate(words)}), encoding="utf-8")
    files[1].write_text("#version: 0.2\n", encoding="utf-8")
    text = CLIPTextConfig(vocab_size=len(words), bos_token_id=512, eos_token_id=513, intermediate_size=64, **HEADS)
    blocks = {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1, "norm_num_groups": 8}
    vae_blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    pipe = script.StableDiffusionPipelinePerco(
        vae=AutoencoderKL(latent_channels=4, **blocks, **vae_blocks),
        hyper_enc=HyperEncoder(N=32, cfg_ss=32, cfg_cs=256),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(*map(str, files), model_max_length=77),
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=32, attention_head_dim=8, **blocks),
        scheduler=PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1, prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(Path(folder, "pipeline"))
    _save_captioner(Path(folder, "captioner"), files, len(words))
    return {"point": RATE, "options": {"weights": Path(folder, "pipeline"), "captioner": Path(folder, "captioner"), "steps": STEPS}}


def direct(folder, image):
    """The two streams that the authors' evaluation counts, one after the other, and the picture of their pipeline."""
    script = _script()
    import numpy as np
    import torch

    script.cfg_perco.target_rate = RATE
    processor = script.Blip2Processor.from_pretrained(Path(folder, "captioner"))
    captioner = script.Blip2ForConditionalGeneration.from_pretrained(Path(folder, "captioner"))
    pipe = script.StableDiffusionPipelinePerco.from_pretrained(
        Path(folder, "pipeline"), safety_checker=None, requires_safety_checker=False
    )
    pixels, path = script.ToTensor()(image), str(Path(folder, "stream.pkl"))
    with torch.no_grad():
        tokens = captioner.generate(
            **processor(images=pixels * 255, return_tensors="pt"), max_length=script.cfg_perco.max_number_tokens
        )
        caption = processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()
        torch.manual_seed(0)  # The authors leave the sampling of the VAE to chance.
        latents = pipe.vae.encode((pixels * 2.0 - 1.0).unsqueeze(0)).latent_dist.sample() * pipe.vae.config.scaling_factor
        pipe.hyper_enc.quantizer.eval()
        codes = script.compress_hyper_latent(pipe.hyper_enc(latents).indices)
        script.write_compressed_data_to_file(script.compress_text(caption), codes, tuple(pixels.shape[1:]), path)
        coded_caption, codes, shape = script.read_compressed_data_from_file(path)
        indices = script.decompress_hyper_latent(codes, shape).long()
        features = pipe.hyper_enc.quantizer.get_output_from_indices(indices).permute(0, 3, 1, 2)
        generator = torch.Generator().manual_seed(script.cfg_perco.random_seed)
        options = {"num_inference_steps": STEPS, "guidance_scale": script.cfg_perco.guidance_scale, "generator": generator}
        picture = pipe(script.decompress_text(coded_caption), features, height=shape[0], width=shape[1], **options).images[0]
    return coded_caption + codes, np.array(picture)


def _save_captioner(folder, files, words):
    import transformers

    config = transformers.Blip2Config(
        vision_config={"image_size": 32, "patch_size": 8, "intermediate_size": 64, **HEADS},
        qformer_config={"encoder_hidden_size": 32, "intermediate_size": 64, **HEADS},
        text_config={"model_type": "opt", "vocab_size": words, "ffn_dim": 64, "word_embed_proj_dim": 32, **HEADS},
        num_query_tokens=4,
    )
    transformers.Blip2ForConditionalGeneration(config).save_pretrained(folder)
    images = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    transformers.Blip2Processor(images, transformers.GPT2Tokenizer(*map(str, files))).save_pretrained(folder)


def _script():
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # torchac starts ninja by name.
    import compression_utils

    return compression_utils
