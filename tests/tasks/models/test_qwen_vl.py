"""Qwen-VL's adapter against the library's own pipeline, on small random-weight checkpoints with a tokenizer built here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("torchvision")

from PIL import Image  # noqa: E402
from tokenizers.pre_tokenizers import ByteLevel  # noqa: E402

from icmbench.tasks.models.errors import ModelError  # noqa: E402
from icmbench.tasks.models.qwen_vl import QwenVL  # noqa: E402

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROMPTS = ["Where is the giraffe?", "What is this? One word.", "Locate the red bus in this photograph, please."]


def processor(**sizes: int) -> Any:
    """A byte-level tokenizer without merges, with the special tokens of the real one."""
    vocabulary = {piece: index for index, piece in enumerate([*sorted(ByteLevel.alphabet()), *SPECIAL])}
    tokenizer = transformers.Qwen2Tokenizer(
        vocab=vocabulary, merges=[], eos_token="<|im_end|>", pad_token="<|endoftext|>", additional_special_tokens=SPECIAL
    )
    size = {"shortest_edge": sizes.get("least", 56 * 56), "longest_edge": sizes.get("most", 28 * 28 * 40)}
    return transformers.Qwen2_5_VLProcessor(
        transformers.Qwen2VLImageProcessor(size=size),
        tokenizer,
        transformers.Qwen2VLVideoProcessor(),
        chat_template=TEMPLATE,
    )


def qwen(folder: Path, generation: str = "2_5", **sizes: int) -> Path:
    reader = processor(**sizes)
    ids = {token: reader.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    text = {
        "vocab_size": len(reader.tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]},
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    tokens = {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }
    torch.manual_seed(0)
    if generation == "2_5":
        vision = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 32}
        config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config={**vision, "fullatt_block_indexes": [1]}, **tokens)
        network = transformers.Qwen2_5_VLForConditionalGeneration(config)
    else:
        vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
        config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision, **tokens)
        network = transformers.Qwen2VLForConditionalGeneration(config)
    with torch.no_grad():  # far from its initialisation, so that its words depend on what it sees
        for weight in network.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.3)
    network.generation_config.eos_token_id = ids["<|im_end|>"]
    network.generation_config.pad_token_id = ids["<|endoftext|>"]
    network.save_pretrained(folder)
    reader.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen(tmp_path_factory.mktemp("qwen"))


def test_answers_equal_the_pipeline(folder: Path, photos: Any) -> None:
    model = QwenVL(path=folder, max_tokens=12, dtype="float32")
    answers = model.answer(photos[:3], PROMPTS)
    pipeline = transformers.pipeline("image-text-to-text", model=str(folder), device="cpu", dtype=torch.float32)
    for photo, prompt, answer in zip(photos, PROMPTS, answers, strict=False):
        content = [{"type": "image", "image": Image.fromarray(photo)}, {"type": "text", "text": prompt}]
        (expected,) = pipeline(
            text=[{"role": "user", "content": content}],
            return_full_text=False,
            generate_kwargs={"max_new_tokens": 12, "do_sample": False},
        )
        assert answer == expected["generated_text"]
    assert len(set(answers)) == 3 and all(answers)


def test_the_answer_depends_on_the_image(folder: Path, photos: Any) -> None:
    model = QwenVL(path=folder, max_tokens=12, dtype="float32")
    assert len(set(model.answer(photos[:3], [PROMPTS[0]] * 3))) > 1


def test_a_batch_answers_as_each_alone(folder: Path, photos: Any) -> None:
    alone = QwenVL(path=folder, max_tokens=8, dtype="float32").answer(photos[:3], PROMPTS)
    assert QwenVL(path=folder, max_tokens=8, dtype="float32", batch_size=3).answer(photos[:3], PROMPTS) == alone


def test_a_system_prompt_is_heard(folder: Path, photos: Any) -> None:
    plain, told = (QwenVL(path=folder, max_tokens=8, dtype="float32", system=system) for system in (None, "Speak in riddles."))
    assert plain.answer(photos[:1], PROMPTS[:1]) != told.answer(photos[:1], PROMPTS[:1])
    assert plain.fingerprint != told.fingerprint


@pytest.mark.parametrize("size", [(480, 640), (427, 640), (30, 300), (1200, 90), (57, 57), (13, 300)])
@pytest.mark.parametrize("bounds", [{}, {"min_pixels": 20000, "max_pixels": 100000}])
def test_the_resized_size_is_what_the_model_sees(folder: Path, size: tuple[int, int], bounds: dict[str, int]) -> None:
    model = QwenVL(path=folder, **bounds)
    image = Image.new("RGB", size[::-1])
    inputs = model.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image", "image": image}]}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    patches = inputs["image_grid_thw"][0, 1:].numpy()
    assert model.resized_size(*size) == tuple(patches * 14)
    least, most = bounds.get("min_pixels", 56 * 56), bounds.get("max_pixels", 28 * 28 * 40)
    assert least <= np.prod(model.resized_size(*size)) <= most


def test_each_generation_writes_boxes_its_own_way(folder: Path, tmp_path: Path, photos: Any) -> None:
    assert QwenVL(path=folder).box_convention == "absolute_resized"
    older = QwenVL(path=qwen(tmp_path / "2", "2"), max_tokens=3, dtype="float32")
    assert older.box_convention == "norm1000"
    assert len(older.answer(photos[:1], PROMPTS[:1])) == 1
    transformers.ViTConfig().save_pretrained(tmp_path / "vit")
    with pytest.raises(ModelError, match="a 'vit' checkpoint is no Qwen-VL"):
        _ = QwenVL(path=tmp_path / "vit").box_convention


def test_half_precision_and_the_fingerprint(folder: Path, photos: Any) -> None:
    model = QwenVL(path=folder, max_tokens=3)
    assert len(model.answer(photos[:1], PROMPTS[:1])) == 1
    assert str(model.network.dtype) == "torch.bfloat16"
    for change in ({"dtype": "float32"}, {"max_tokens": 4}, {"max_pixels": 99999}, {"batch_size": 2}):
        other = QwenVL(path=folder, **{"max_tokens": 3, **change})
        assert other.fingerprint != model.fingerprint and "network" not in vars(other)
