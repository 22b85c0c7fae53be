"""The adapter for Qwen-VL against transformers' own pipeline, on small random checkpoints with a tokenizer built here."""

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

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MIN_PIXELS, MAX_PIXELS = 56 * 56, 28 * 28 * 40
PROMPTS = ["Where is the giraffe?", "What is this? One word.", "Locate the red bus in this photograph, please."]


def build_processor() -> Any:
    """A processor with a byte-level tokenizer that has the special tokens of the real one, but no merges."""
    vocabulary = {piece: index for index, piece in enumerate([*sorted(ByteLevel.alphabet()), *SPECIAL_TOKENS])}
    tokenizer = transformers.Qwen2Tokenizer(
        vocab=vocabulary, merges=[], eos_token="<|im_end|>", pad_token="<|endoftext|>", additional_special_tokens=SPECIAL_TOKENS
    )
    return transformers.Qwen2_5_VLProcessor(
        transformers.Qwen2VLImageProcessor(size={"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}),
        tokenizer,
        transformers.Qwen2VLVideoProcessor(),
        chat_template=TEMPLATE,
    )


def save_qwen(folder: Path, generation: str = "2_5") -> Path:
    """Save a small Qwen2-VL or Qwen2.5-VL of random weights as `save_pretrained` writes it."""
    processor = build_processor()
    ids = {token: processor.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    text = {
        "vocab_size": len(processor.tokenizer),
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
    with torch.no_grad():  # The usual small weights would give the same answer for every image.
        for weight in network.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.3)
    network.generation_config.eos_token_id = ids["<|im_end|>"]
    network.generation_config.pad_token_id = ids["<|endoftext|>"]
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen(tmp_path_factory.mktemp("qwen"))


def test_answers_equal_the_pipelines(folder: Path, photos: Any) -> None:
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


def test_answers_of_a_batch_equal_single_answers(folder: Path, photos: Any) -> None:
    singles = QwenVL(path=folder, max_tokens=8, dtype="float32").answer(photos[:3], PROMPTS)
    assert QwenVL(path=folder, max_tokens=8, dtype="float32", batch_size=3).answer(photos[:3], PROMPTS) == singles


def test_a_system_message_changes_answer_and_fingerprint(folder: Path, photos: Any) -> None:
    without = QwenVL(path=folder, max_tokens=8, dtype="float32")
    with_system = QwenVL(path=folder, max_tokens=8, dtype="float32", system="Speak in riddles.")
    assert without.answer(photos[:1], PROMPTS[:1]) != with_system.answer(photos[:1], PROMPTS[:1])
    assert without.fingerprint != with_system.fingerprint


@pytest.mark.parametrize("size", [(480, 640), (427, 640), (30, 300), (1200, 90), (57, 57), (13, 300)])
@pytest.mark.parametrize("bounds", [{}, {"min_pixels": 20000, "max_pixels": 100000}])
def test_the_resized_size_is_that_of_the_processor(folder: Path, size: tuple[int, int], bounds: dict[str, int]) -> None:
    model = QwenVL(path=folder, **bounds)
    image = Image.new("RGB", size[::-1])
    inputs = model.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image", "image": image}]}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    patches = inputs["image_grid_thw"][0, 1:].numpy()
    assert model.resized_size(*size) == tuple(patches * 14)
    smallest, largest = bounds.get("min_pixels", MIN_PIXELS), bounds.get("max_pixels", MAX_PIXELS)
    assert smallest <= np.prod(model.resized_size(*size)) <= largest


def test_the_box_convention_follows_the_generation(folder: Path, tmp_path: Path, photos: Any) -> None:
    assert QwenVL(path=folder).box_convention == "absolute_resized"
    qwen2 = QwenVL(path=save_qwen(tmp_path / "2", "2"), max_tokens=3, dtype="float32")
    assert qwen2.box_convention == "norm1000"
    assert len(qwen2.answer(photos[:1], PROMPTS[:1])) == 1
    transformers.ViTConfig().save_pretrained(tmp_path / "vit")
    with pytest.raises(ModelError, match="a 'vit' checkpoint is no Qwen-VL"):
        _ = QwenVL(path=tmp_path / "vit").box_convention


def test_the_network_runs_in_bfloat16_by_default(folder: Path, photos: Any) -> None:
    model = QwenVL(path=folder, max_tokens=3)
    assert len(model.answer(photos[:1], PROMPTS[:1])) == 1
    assert str(model.network.dtype) == "torch.bfloat16"


def test_the_fingerprint_holds_what_decides_an_answer_and_loads_no_network(folder: Path) -> None:
    default = QwenVL(path=folder)
    for change in ({"dtype": "float32"}, {"max_tokens": 4}, {"max_pixels": 99999}, {"batch_size": 2}):
        changed = QwenVL(path=folder, **change)
        assert changed.fingerprint != default.fingerprint and "network" not in vars(changed)
