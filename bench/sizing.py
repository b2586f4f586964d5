"""Prints what passes of a model are predicted to take, for each shipped profile and some sizes.

    python bench/sizing.py --bin build/release/bin --checkpoint DIR [--device-budget 24GiB] [--host-budget 64GiB]

Nothing is computed, and of the checkpoint only the headers are read: a sparse one does.
"""

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

from plan_accuracy import GIB, ditctl

SIDES = (512, 1024, 1328, 2048)
PROMPT_TOKENS = 512


def amount(of: dict, field: str) -> str:
    return f"{int(of.get(field, 0)) / GIB:.2f}"


def row(profile: str, side: int, plan: dict) -> str:
    cells = [profile, f"{side}x{side}", amount(plan, "activation_bytes")]
    for name in ("first_pass", "repeated_pass"):
        cells += [amount(plan[name], "disk_read_bytes"), amount(plan[name], "device_copy_bytes")]
    device, host = plan["repeated_pass"]["memories"]
    cells += [amount(device, "weights_bytes"), amount(device, "peak_bytes"), amount(host, "peak_bytes")]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--device-budget", default="24GiB")
    parser.add_argument("--host-budget", default="64GiB")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["DITSERVE_ADDRESS"] = f"unix:{scratch}/socket"
        config = Path(scratch) / "config.yaml"
        config.write_text("device: {bfloat16_arithmetic: native}\nmemory: {follow_pressure: false}\n")
        server = subprocess.Popen(
            [arguments.bin / "ditserve", "--config", config, "--listen", os.environ["DITSERVE_ADDRESS"],
             "--admin-listen", "none", "--metrics-listen", "none", "--device-budget", arguments.device_budget,
             "--host-budget", arguments.host_budget, "--log-level", "error",
             "--model", f"model={arguments.checkpoint}"], stdout=subprocess.PIPE)
        try:
            server.stdout.readline()
            print("| profile | size | activations | first pass: disk | to device | repeated: disk | to device "
                  "| device: weights at the peak | device peak | host peak |")
            print("|" + " --- |" * 10)
            for profile in ditctl(arguments.bin, "profiles", "--json")["profiles"]:
                for side in SIDES:
                    plan = ditctl(arguments.bin, "plan", "--profile", profile["name"], "--height", str(side), "--width",
                                  str(side), "--prompt-tokens", str(PROMPT_TOKENS), "--json")
                    print(row(profile["name"], side, plan))
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
