"""The cases on which ditserve is compared with the two published implementations, and their inputs.

Inputs are not stored: they are made from a seed, by the arithmetic that models/seeded_values.h defines.
"""

from dataclasses import dataclass

import numpy as np

PROMPT_CHANNELS = 3584
NUMERICS = ("diffsynth", "diffusers")


@dataclass(frozen=True)
class Case:
    """One forward pass. `lengths` has an entry an item; a hole is a token in the middle that does not count."""

    name: str
    blocks: int
    height: int
    width: int
    lengths: tuple[int, ...]
    timestep: float
    hole: bool = False
    bfloat16: bool = False  # Also compared in bfloat16.

    @property
    def seed(self) -> int:
        return hash_name(self.name) % 1_000_003

    @property
    def tokens(self) -> int:
        return max(self.lengths)

    def mask(self) -> np.ndarray:
        """Shape [B, T], int64."""
        mask = np.array([[int(t < length) for t in range(self.tokens)] for length in self.lengths], dtype=np.int64)
        if self.hole:
            mask[0, 1] = 0
        return mask

    def latents(self) -> np.ndarray:
        """Shape [B, 16, H/8, W/8], float32."""
        return seeded(self.seed, "latents", (len(self.lengths), 16, self.height // 8, self.width // 8))

    def prompt_emb(self) -> np.ndarray:
        """Shape [B, T, 3584], float32."""
        return seeded(self.seed, "prompt_emb", (len(self.lengths), self.tokens, PROMPT_CHANNELS))


CASES = (
    Case("square_64", 1, 64, 64, (5,), 0.0),
    Case("square_64_deep", 2, 64, 64, (5,), 0.5, bfloat16=True),
    Case("square_128", 1, 128, 128, (77,), 0.5),
    Case("square_128_deep", 2, 128, 128, (1,), 1.0),
    Case("square_256", 1, 256, 256, (5,), 1.0, bfloat16=True),
    Case("square_256_deep", 2, 256, 256, (5,), 0.0),
    Case("wide", 1, 96, 192, (5,), 0.5),
    Case("wide_deep", 2, 96, 192, (77,), 0.5, bfloat16=True),
    Case("tall_odd", 1, 192, 80, (1,), 1.0),
    Case("tall_odd_deep", 2, 192, 80, (5,), 0.0),
    Case("odd", 1, 48, 80, (77,), 0.0),
    Case("odd_deep", 2, 112, 48, (5,), 1.0),
    Case("one_patch", 1, 16, 16, (1,), 0.5),
    Case("one_patch_deep", 2, 16, 16, (512,), 0.5),
    Case("long_prompt", 1, 64, 96, (512,), 1.0),
    Case("batch", 1, 64, 64, (1, 5, 77), 0.5),
    Case("batch_deep", 2, 48, 80, (77, 5, 1), 1.0),
    Case("hole", 1, 64, 64, (5,), 0.5, hole=True),
    Case("hole_in_batch", 2, 48, 64, (77, 5), 0.5, hole=True),
)


def hash_name(name: str) -> int:
    """FNV-1a, 64 bits."""
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def mix(bits: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def seeded(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Roughly standard normal float32 values: models/seeded_values.h with mean 0 and deviation 1."""
    count = int(np.prod(shape))
    with np.errstate(over="ignore"):
        stream = mix(np.array([seed ^ hash_name(name)], dtype=np.uint64))
        bits = mix(stream + np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    total = sum(((bits >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int32) for shift in (0, 16, 32, 48))
    scale = np.float32(1.0) / np.float32(37837.0)
    return ((total - 131070).astype(np.float32) * scale).reshape(shape)
