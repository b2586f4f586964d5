"""The Ray Serve example, on stand-ins for all but the client: what a replica holds, and what it makes of a request.

What it makes of a real pipeline, torch/test_examples.py sees.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import pytest

import ditserve

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parents[1] / "client/python/examples/ray_serve.py"


class Pipeline:
    """Stands for diffusers'; keeps what it was told."""

    def __init__(self, name: str, **options: object):
        self.name, self.options, self.asked = name, options, {}

    @classmethod
    def from_pretrained(cls, name: str, **options: object) -> Pipeline:
        return cls(name, **options)

    def __call__(self, **asked: object) -> types.SimpleNamespace:
        self.asked = asked
        picture = types.SimpleNamespace(save=lambda file, kind: file.write(kind.encode()))
        return types.SimpleNamespace(images=[picture])


class Generator:
    def manual_seed(self, seed: int) -> int:
        return seed


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(HERE / "ray_standin")
    for name, attributes in {
        "torch": {"bfloat16": "bfloat16", "Generator": Generator},
        "diffusers": {"QwenImagePipeline": Pipeline},
        "ditserve.diffusers": {"RemoteTransformer": lambda client, **options: (client, options)},
    }.items():
        module = types.ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("ray", "ray.serve", "starlette", "starlette.requests", "starlette.responses"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec = importlib.util.spec_from_file_location("ray_serve", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


def test_a_replica_has_the_pipeline_and_all_the_servers_in_the_place_of_its_transformer(example, fakes):
    addresses = [fake.address for fake in fakes]
    arguments = {"pipeline": "Qwen/Qwen-Image", "addresses": ",".join(addresses)}
    replica = example.serve.build(example.pictures, arguments).deploy()
    pipe = replica._pipe
    assert (pipe.name, pipe.options) == ("Qwen/Qwen-Image", {"transformer": None, "dtype": "bfloat16"})
    client, options = pipe.transformer
    assert isinstance(client, ditserve.Client)
    assert client._session._servers.addresses == tuple(addresses)
    assert options == {"profile": "disk"}
    client.close()


def test_a_request_is_a_picture_of_what_it_asks_for(example, fake):
    replica = example.serve.build(example.pictures, {"pipeline": "tiny", "addresses": fake.address}).deploy()
    answer = replica(example.Request({"prompt": "a cat", "side": "64", "steps": "2", "seed": "5"}))
    assert (answer.content, answer.media_type) == (b"PNG", "image/png")
    assert replica._pipe.asked == {"prompt": "a cat", "negative_prompt": " ", "height": 64, "width": 64,
                                   "num_inference_steps": 2, "generator": 5}
    replica(example.Request({"prompt": "a dog"}))
    assert replica._pipe.asked == {"prompt": "a dog", "negative_prompt": " ", "height": 1024, "width": 1024,
                                   "num_inference_steps": 50, "generator": 0}
    replica._pipe.transformer[0].close()
