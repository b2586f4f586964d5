"""Text to image, with a server in the place of the transformer.

    python tiny_pipeline.py tiny                                                 # or Qwen-Image's own folder
    ditserve --model qwen-image=tiny/transformer,numerics=diffusers &
    python text_to_image.py --pipeline tiny --prompt "a cat" --output cat.png

The transformer is never loaded here.
"""

import argparse

import torch
from diffusers import QwenImagePipeline

import ditserve
from ditserve.diffusers import RemoteTransformer

parser = argparse.ArgumentParser()
parser.add_argument("--pipeline", default="Qwen/Qwen-Image", help="a folder, or a name on the hub")
parser.add_argument("--address", default="127.0.0.1:50051")
parser.add_argument("--profile", default="disk")
parser.add_argument("--prompt", required=True)
parser.add_argument("--negative-prompt", default=" ")
parser.add_argument("--side", type=int, default=1024, help="pixels")
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
parser.add_argument("--output", default="picture.png")
given = parser.parse_args()

pipe = QwenImagePipeline.from_pretrained(given.pipeline, transformer=None, dtype=getattr(torch, given.dtype))
pipe.transformer = RemoteTransformer(ditserve.Client(given.address), profile=given.profile)
picture = pipe(
    prompt=given.prompt,
    negative_prompt=given.negative_prompt,
    true_cfg_scale=4.0,
    height=given.side,
    width=given.side,
    num_inference_steps=given.steps,
    generator=torch.Generator().manual_seed(given.seed),
).images[0]
picture.save(given.output)
