"""Records what DiffSynth-Studio answers where it computes in float8_e4m3fn, for tests/models/parity_test.cc.

    ditctl make-checkpoint --blocks 1 --seed 0 --out ONE
    ditctl make-checkpoint --blocks 2 --seed 0 --out TWO
    python scripts/parity/record_float8.py ONE TWO tests/models/parity/float8.safetensors

needs the packages of requirements.txt. Passes are those of the cases that are compared in bfloat16, in float32 and in
float8; products are those of single Linears, with rows of several sizes. The metadata describes each case.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from cases import CASES, seeded
from references import References

# Of the model of two blocks. Rows are multiplied with these, in turn: the largest float8 is 448.
LINEARS = ("img_in", "transformer_blocks.1.attn.to_k", "transformer_blocks.0.txt_mlp.net.2", "proj_out")
ROWS = 12
FACTORS = (1e-3, 1.0, 90.0, 150.0, 1e4, 1e30)


@torch.no_grad()
def product(linear: torch.nn.Module, name: str) -> torch.Tensor:
    rows = torch.from_numpy(seeded(0, name, (ROWS, linear.in_features)))
    factors = torch.tensor([FACTORS[i % len(FACTORS)] for i in range(ROWS)])
    return linear((rows * factors[:, None]).to(torch.bfloat16))


def main() -> None:
    one, two, target = (Path(argument) for argument in sys.argv[1:4])
    torch.set_num_threads(2)
    tensors: dict[str, torch.Tensor] = {}
    metadata: dict[str, str] = {}
    for references in (References(one), References(two)):
        cases = [case for case in CASES if case.blocks == references.blocks and case.bfloat16]
        reference = references.load("diffsynth", torch.float32)
        tensors |= {f"{case.name}.float32": reference.run(case).contiguous() for case in cases}
        reference = references.load_float8()
        tensors |= {f"{case.name}.float8": reference.run(case).contiguous() for case in cases}
        if references.blocks == 2:
            modules = dict(reference.model.named_modules())
            tensors |= {f"product.{name}": product(modules[name], name) for name in LINEARS}
        for case in cases:
            described = {"blocks": case.blocks, "height": case.height, "width": case.width, "seed": case.seed}
            metadata[case.name] = json.dumps(described | {"mask": case.mask().tolist(), "timestep": case.timestep})
    save_file(tensors, str(target), metadata)
    print(f"{len(tensors)} tensors, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
