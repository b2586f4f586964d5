"""The examples run: a tiny pipeline is written, served, and makes the picture that it makes without a server."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import QwenImagePipeline
from PIL import Image
from programs import Server

EXAMPLES = Path(__file__).resolve().parents[3] / "client/python/examples"


def run(name: str, *arguments: object) -> None:
    done = subprocess.run([sys.executable, EXAMPLES / name, *map(str, arguments)], capture_output=True, text=True,
                          env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    assert done.returncode == 0, done.stderr


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    run("tiny_pipeline.py", folder)
    return folder


def test_text_to_image_gives_the_picture_of_a_local_transformer(pipeline, tmp_path_factory, tmp_path):
    with Server(tmp_path_factory.mktemp("s"), "--model", f"qwen-image={pipeline}/transformer,numerics=diffusers") as server:
        run("text_to_image.py", "--pipeline", pipeline, "--address", server.address, "--prompt", "a cat", "--side", 64,
            "--steps", 4, "--seed", 5, "--dtype", "float32", "--output", tmp_path / "cat.png")
    pipe = QwenImagePipeline.from_pretrained(pipeline)
    local, other = (pixels(pipe(prompt="a cat", negative_prompt=" ", true_cfg_scale=4.0, height=64, width=64,
                                num_inference_steps=4, generator=torch.Generator().manual_seed(seed)).images[0])
                    for seed in (5, 6))
    remote = pixels(Image.open(tmp_path / "cat.png"))
    assert remote.shape == (64, 64, 3)
    # The profile computes in bfloat16.
    assert abs(remote - local).max() < 8 < abs(remote - other).max()


def test_a_replica_of_ray_serve_makes_the_picture_that_text_to_image_does(pipeline, tmp_path_factory, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "ray_standin")
    spec = importlib.util.spec_from_file_location("ray_serve", EXAMPLES / "ray_serve.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    with Server(tmp_path_factory.mktemp("s"), "--model", f"qwen-image={pipeline}/transformer,numerics=diffusers") as server:
        run("text_to_image.py", "--pipeline", pipeline, "--address", server.address, "--prompt", "a cat", "--side", 64,
            "--steps", 4, "--seed", 5, "--output", tmp_path / "cat.png")
        replica = example.serve.build(example.pictures, {"pipeline": str(pipeline), "addresses": server.address}).deploy()
        asked = {"prompt": "a cat", "side": "64", "steps": "4", "seed": "5"}
        answer = replica(example.Request(asked))
        other = replica(example.Request({**asked, "seed": "6"}))
    assert answer.media_type == "image/png"
    expected = pixels(Image.open(tmp_path / "cat.png"))
    assert np.array_equal(pixels(Image.open(io.BytesIO(answer.content))), expected)
    assert not np.array_equal(pixels(Image.open(io.BytesIO(other.content))), expected)


def test_the_notebooks_cells_run(server):
    import matplotlib

    matplotlib.use("Agg")
    cells = json.loads((EXAMPLES / "residency.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    names = {}
    exec(code.replace("127.0.0.1:50051", server.address), names)
    assert len(names["steps"]) == 12
    assert all(account.compute > 0 for account in names["accounts"].values())
    assert names["seen"]
