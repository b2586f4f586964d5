"""Records what DiffSynth-Studio and diffusers answer, for tests/models/parity_test.cc.

    ditctl make-checkpoint --blocks 1 --seed 0 --out ONE
    ditctl make-checkpoint --blocks 2 --seed 0 --out TWO
    python scripts/parity/record.py ONE TWO tests/models/parity/expected.safetensors

needs the packages of requirements.txt. Outputs are stored in float32; the metadata describes each case, and how far each
implementation's bfloat16 result is from its own float32 result (root of the mean square, relative).
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from cases import CASES, NUMERICS
from references import References, runs


def main() -> None:
    one, two, target = (Path(argument) for argument in sys.argv[1:4])
    torch.set_num_threads(2)
    outputs: dict[str, torch.Tensor] = {}
    metadata: dict[str, str] = {}
    for references in (References(one), References(two)):
        cases = [case for case in CASES if case.blocks == references.blocks]
        for numerics in NUMERICS:
            reference = references.load(numerics, torch.float32)
            for case in cases:
                if runs(case, numerics):
                    outputs[f"{case.name}.{numerics}"] = reference.run(case).contiguous()
            del reference
            reference = references.load(numerics, torch.bfloat16)
            for case in cases:
                if case.bfloat16:
                    exact = outputs[f"{case.name}.{numerics}"]
                    error = ((reference.run(case) - exact).square().mean() / exact.square().mean()).sqrt()
                    metadata[f"bfloat16_rms_error.{case.name}.{numerics}"] = f"{error.item():.6f}"
            del reference
        for case in cases:
            metadata[case.name] = json.dumps(
                {
                    "blocks": case.blocks,
                    "height": case.height,
                    "width": case.width,
                    "mask": case.mask().tolist(),
                    "timestep": case.timestep,
                    "seed": case.seed,
                }
            )
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(outputs, str(target), metadata)
    print(f"{len(outputs)} outputs, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
