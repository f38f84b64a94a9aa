"""Ask a vision-language model about an image, with fewer vision tokens.

python vlm.py CHECKPOINT ARTIFACT IMAGE [QUESTION]

ARTIFACT is a build of the checkpoint's image half, for images of the size that its processor makes:

    tcompile export hf:CHECKPOINT -o encoder.onnx              (Qwen-VL: hf:CHECKPOINT?grid=1,32,32)
    tcompile build encoder.onnx --target cpu --keep 0.5 -o ARTIFACT

Without arguments it does all that with a tiny Qwen2-VL of random weights, whose answer means
nothing.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

import tcompile
from tcompile import vlm


def ask(model: Any, inputs: Any, encoder: Any, **how: Any) -> torch.Tensor:
    """The tokens that the model answers with.

    Args:
        model: transformers' model.
        inputs: what its processor gives for a prompt with images of one size.
        encoder: the artifact, loaded.
        how: of `generate`.
    """
    shape = encoder.inputs[0].shape
    images = shape if "image_grid_thw" in inputs else shape[1:]  # Qwen-VL: rows are patches
    result = encoder(inputs["pixel_values"].float().numpy().reshape(-1, *images))
    given = vlm.hand_off(model, inputs, result)
    before, after = inputs["input_ids"].shape[1], given["attention_mask"].shape[1]
    print(f"the language model reads {after} tokens in place of {before}")
    answer: torch.Tensor = model.generate(**given, **how)
    return answer[:, given["input_ids"].shape[1] :] if "input_ids" in given else answer


def from_checkpoint(
    checkpoint: str, artifact: str, image: str, question: str = "What is in this image?"
) -> None:
    """Ask a checkpoint, by its name or folder."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(checkpoint)
    processor = transformers.AutoProcessor.from_pretrained(checkpoint)
    content = [{"type": "image", "path": image}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with tcompile.load(artifact) as encoder:
        answer = ask(model, inputs, encoder, max_new_tokens=100)
    print(processor.batch_decode(answer, skip_special_tokens=True)[0])


def tiny(folder: Path) -> tuple[Any, dict[str, torch.Tensor], Path]:
    """A Qwen2-VL with random weights, a prompt with an image of 8 × 8 patches, and an artifact."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    text = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 100,
        "rope_parameters": rope,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    vision = {"depth": 3, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 4}
    config = transformers.Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=90,
        video_token_id=91,
        vision_start_token_id=92,
        vision_end_token_id=93,
    )
    torch.manual_seed(0)
    model = transformers.Qwen2VLForConditionalGeneration(config).eval()
    model.save_pretrained(folder / "checkpoint")
    ids = torch.tensor([[1, 10, 11, 92, *[90] * 16, 93, 12, 13]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == 90).int(),
        "image_grid_thw": torch.tensor([[1, 8, 8]]),
        "pixel_values": torch.randn(64, 96),
    }
    tcompile.export(f"hf:{folder / 'checkpoint'}?grid=1,8,8", folder / "encoder.onnx")
    artifact = tcompile.build(
        folder / "encoder.onnx",
        target="cpu",
        method="topk",
        keep=0.5,
        output=folder / "encoder",
        force=True,  # whether it is faster does not matter here
    )
    return model, inputs, artifact


def main(*arguments: str) -> None:
    """See the top of this file."""
    if arguments:
        from_checkpoint(*arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        model, inputs, artifact = tiny(Path(folder))
        with tcompile.load(artifact) as encoder:
            answer = ask(model, inputs, encoder, max_new_tokens=5, do_sample=False)
    print("token ids of the answer:", *answer[0].tolist())


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except tcompile.TcompileError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
