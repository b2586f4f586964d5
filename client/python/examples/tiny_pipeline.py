"""Writes a Qwen-Image pipeline of diffusers' and transformers' own classes, with made-up weights, in seconds.

usage: python tiny_pipeline.py FOLDER    needs diffusers 0.42 and transformers 5; writes 0.1 GB

Its pictures are noise. Everything is as in Qwen-Image but small: the text encoder has one layer of the width that the
transformer takes, the transformer two narrow blocks, the VAE one channel in twelve.
"""

import sys

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

PROMPT = 3584
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def text_encoder(vocabulary: int) -> torch.nn.Module:
    text = {
        "hidden_size": PROMPT,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 28,
        "num_key_value_heads": 1,
        "vocab_size": vocabulary,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    }
    vision = {
        "depth": 1,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": PROMPT,
        "fullatt_block_indexes": [0],
    }
    ends = {"bos_token_id": vocabulary - 3, "eos_token_id": vocabulary - 1}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config={**text, **ends}, vision_config=vision, **ends))


def tokenizer() -> Qwen2Tokenizer:
    """A token for each byte."""
    tokens = [*sorted(ByteLevel.alphabet()), *SPECIAL]
    return Qwen2Tokenizer({token: i for i, token in enumerate(tokens)}, [], additional_special_tokens=SPECIAL)


def pipeline() -> QwenImagePipeline:
    torch.manual_seed(0)
    words = tokenizer()
    return QwenImagePipeline(
        tokenizer=words,
        text_encoder=text_encoder(len(words)),
        transformer=QwenImageTransformer2DModel(
            num_layers=2, num_attention_heads=2, attention_head_dim=16, axes_dims_rope=(4, 6, 6)
        ),
        vae=AutoencoderKLQwenImage(base_dim=8, z_dim=16, num_res_blocks=1),
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=0.9,
            base_image_seq_len=256,
            max_image_seq_len=8192,
            shift_terminal=0.02,
        ),
    )


if __name__ == "__main__":
    pipeline().save_pretrained(sys.argv[1])
