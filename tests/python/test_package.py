"""The package as users install it, and the command that it prints for a server."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from programs import BIN

import ditserve
from ditserve._serve import serve

ROOT = Path(__file__).resolve().parents[2]
DISTRIBUTIONS = {"google": "protobuf", "grpc": "grpcio", "numpy": "numpy"}  # Of what is imported of others.
VRAM_CONFIG = {
    "offload_dtype": "disk", "offload_device": "disk", "onload_dtype": "disk", "onload_device": "disk",
    "preparing_dtype": "torch.bfloat16", "preparing_device": "cuda",
    "computation_dtype": "torch.bfloat16", "computation_device": "cuda",
}


class QwenImageDiT:
    """Named as DiffSynth-Studio's."""


def build(folder: Path, kind: str) -> Path:
    """What the sources in `folder` become: "wheel" or "sdist"."""
    backend = f"import setuptools.build_meta as backend; print(backend.build_{kind}('built'))"
    done = subprocess.run([sys.executable, "-c", backend], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "built" / done.stdout.splitlines()[-1]


def install(package: Path, target: Path) -> Path:
    """Installs a folder or a wheel by pip, as a user does, but for what it needs, and uses it. Returns its metadata."""
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-build-isolation", "--no-deps", "--target", target]
    done = subprocess.run([*pip, package], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    program = "import ditserve; print(ditserve.__file__); ditserve.Client().close()"
    done = subprocess.run([sys.executable, "-c", program], cwd=target.parent, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(target)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(target))
    (metadata,) = target.glob("*.dist-info")
    return metadata


@pytest.fixture
def sources(tmp_path):
    """The package's folder in a clone."""
    ignored = shutil.ignore_patterns("api.binpb", "*.egg-info", "__pycache__", "build")
    shutil.copytree(ROOT / "client/python", tmp_path / "clone/client/python", ignore=ignored)
    shutil.copytree(ROOT / "proto", tmp_path / "clone/proto")
    return tmp_path / "clone/client/python"


def test_a_wheel_built_of_the_source_distribution_has_all_that_it_needs(sources, tmp_path):
    source = build(sources, "sdist")
    shutil.unpack_archive(source, tmp_path / "other/unpacked", filter="data")
    (tmp_path / "other/proto").mkdir()  # Somebody's, where the repository has its own.
    (unpacked,) = (tmp_path / "other/unpacked").iterdir()
    wheel = build(unpacked, "wheel")
    assert wheel.name.endswith("-py3-none-any.whl")
    metadata = install(wheel, tmp_path / "installed")
    assert (tmp_path / "installed/ditserve/py.typed").exists()
    assert (metadata / "licenses/LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_package_asks_for_what_its_sources_import(sources, tmp_path):
    distribution = importlib.metadata.Distribution.at(install(sources, tmp_path / "installed"))
    required = {re.match(r"[\w-]+", one)[0] for one in distribution.requires if "extra ==" not in one}
    modules = set((sources / "src/ditserve").glob("*.py"))
    drop_ins = {module for module in modules if "torch" in imported(module)}
    assert {module.name for module in drop_ins} == {"_deferred.py", "diffsynth.py", "diffusers.py"}
    assert required == {DISTRIBUTIONS[name] for module in modules - drop_ins for name in imported(module)}


def imported(module: Path) -> set[str]:
    """What is imported with it, other than its own and Python's."""
    names = set()
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names


@pytest.mark.parametrize(("path", "expected"), [
    ("/models/Qwen-Image/transformer", "/models/Qwen-Image/transformer"),
    (["/models/one.safetensors"], "/models/one.safetensors"),
    ([f"/m/model-0000{i}-of-00009.safetensors" for i in range(1, 10)], "/m/model-*-of-00009.safetensors"),
])
def test_the_servers_command_holds_the_models_path(path, expected, capsys):
    command = serve(QwenImageDiT, path, vram_config=VRAM_CONFIG, torch_dtype="bfloat16", device="cuda")
    assert f"qwen-image={expected}" in command.splitlines()[-1]
    assert capsys.readouterr().out == f"{command}\n"


@pytest.mark.parametrize(("limit", "module_map"), [(None, None), (0, {"torch.nn.Linear": "AutoWrappedLinear"})])
def test_the_servers_command_is_one_that_it_takes(checkpoint, tmp_path, limit, module_map):
    here = {key: value.replace("cuda", "cpu") for key, value in VRAM_CONFIG.items()}
    command = serve(QwenImageDiT, str(checkpoint), vram_config=here, vram_limit=limit, module_map=module_map)
    done = subprocess.run(["bash", "-ec", f"{command} --check"], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"})
    assert done.returncode == 0, done.stderr


def test_the_server_is_told_the_devices_that_the_dict_names():
    devices = yaml_line(serve(QwenImageDiT, "a", vram_config=VRAM_CONFIG), "device")
    assert devices == "{name: ['cuda:0']}"
    two = {**VRAM_CONFIG, "computation_device": "cuda:1"}
    assert yaml_line(serve(QwenImageDiT, "a", vram_config=two), "device") == "{name: ['cuda:0', 'cuda:1']}"
    here = {key: value.replace("cuda", "cpu") for key, value in VRAM_CONFIG.items()}
    assert yaml_line(serve(QwenImageDiT, "a", vram_config=here), "device") is None


def yaml_line(command: str, key: str) -> str | None:
    return next((line.removeprefix(f"{key}: ") for line in command.splitlines() if line.startswith(f"{key}: ")), None)


def test_what_diffsynth_was_not_told_is_not_in_the_servers_command():
    command = serve(QwenImageDiT, "a", vram_config={**VRAM_CONFIG, "offload_dtype": None, "offload_device": None})
    assert "    computation_device: cuda" in command
    assert "offload" not in command
    assert "None" not in command


def test_what_a_server_can_not_be_told_is_refused():
    for arguments, message in (
            (dict(model_class=int, path="a"), "model_class: expected QwenImageDiT; found int"),
            (dict(model_class=QwenImageDiT, path="a", state_dict_converter=str), "state_dict_converter: a server"),
            (dict(model_class=QwenImageDiT, path=["a-1-of-3.safetensors", "a-2-of-3.safetensors"]), "expected all shards"),
            (dict(model_class=QwenImageDiT, path=["a-1-of-2.safetensors", "b-2-of-2.safetensors"]), "expected all shards")):
        with pytest.raises(ValueError, match=message):
            serve(**arguments, vram_config=VRAM_CONFIG)
    with pytest.raises(TypeError, match="vram_limt"):
        serve(QwenImageDiT, "a", vram_config=VRAM_CONFIG, vram_limt=0)
    assert serve(QwenImageDiT, "a", vram_config=VRAM_CONFIG, config={}, state_dict=None)


@pytest.mark.parametrize(("given", "told"), [({}, "torch.bfloat16"), ({"torch_dtype": "torch.float32"}, "torch.float32")])
def test_the_server_computes_in_load_models_dtype_where_the_dict_names_none(given, told):
    command = serve(QwenImageDiT, "a", vram_config=dict.fromkeys(VRAM_CONFIG), **given)
    assert f"    computation_dtype: {told}\n" in command


@pytest.mark.parametrize("name", ["diffsynth", "diffusers"])
def test_a_drop_in_is_imported_when_it_is_named_and_not_before(name):
    program = f"""
import sys, ditserve
assert not {{"torch", "ditserve.{name}"}} & set(sys.modules)
sys.modules["torch"] = None  # As where there is none.
try:
    ditserve.{name}
except ImportError as error:
    print(error.name)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "torch\n"


def test_what_the_package_has_not_is_told_as_usual():
    with pytest.raises(AttributeError, match="module 'ditserve' has no attribute 'transformers'"):
        ditserve.transformers
