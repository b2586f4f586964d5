"""A forward pass of DiffSynth-Studio's model in eager PyTorch, with all of it in memory.

    python bench/eager.py CHECKPOINT SIZE DTYPE

The program is the process of that pass; it prints the seconds.
"""

import json
import sys
import time
from pathlib import Path

import peers
from served import output_of


def eager(checkpoint: Path, size: int, dtype: str) -> float:
    """The seconds of its second pass in this dtype, in a process of its own."""
    output = output_of(sys.executable, __file__, checkpoint, str(size), dtype)
    return json.loads(output.strip().splitlines()[-1])


def run_eager(checkpoint: Path, size: int, name: str) -> None:
    """The reference in this dtype, all of it in memory; prints the seconds of its second pass."""
    import torch
    from diffsynth.core import load_model
    from diffsynth.models.qwen_image_dit import QwenImageDiT

    blocks = json.loads((checkpoint / "config.json").read_text())["num_layers"]
    shards = sorted(str(shard) for shard in checkpoint.glob("*.safetensors"))
    dtype = getattr(torch, name)
    model = load_model(QwenImageDiT, shards, config={"num_layers": blocks}, torch_dtype=dtype, device="cpu")
    tokens = peers.PROMPT_TOKENS
    inputs = {"latents": torch.randn((1, 16, size // 8, size // 8), dtype=dtype),
              "timestep": torch.zeros((1,), dtype=dtype),
              "prompt_emb": torch.randn((1, tokens, 3584), dtype=dtype),
              "prompt_emb_mask": torch.ones((1, tokens), dtype=torch.int64)}
    with torch.no_grad():
        for _ in range(2):
            begun = time.monotonic()
            model(**inputs, height=size, width=size)
            taken = time.monotonic() - begun
    print(json.dumps(taken))


if __name__ == "__main__":
    run_eager(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
