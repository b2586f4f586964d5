"""The server's command for DiffSynth-Studio's load_model."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ._requests import vram_config_keys

_REFUSED = ("config", "state_dict", "state_dict_converter", "quantize")
_TAKEN = ("torch_dtype", "device", "use_disk_map")


def serve(
    model_class: type,
    path: str | Sequence[str],
    *,
    vram_config: Mapping[str, Any],
    vram_limit: float | None = None,
    module_map: Mapping[type | str, type | str] | None = None,
    address: str = "127.0.0.1:50051",
    **others: Any,
) -> str:
    """Prints, and returns, what starts a server that holds a model as `load_model` with these arguments would.

    Requests that say nothing else use the profile `load-model`. The server computes on the devices that vram_config names:
    "cuda" is its first. others: torch_dtype, which it computes in where vram_config names no computation_dtype, bfloat16 if
    left out; device and use_disk_map, which a vram_config says better.

    Errors: ValueError for a model that is none of ours, and for what a server can't be told; TypeError for what load_model
    can't be told either.
    """
    if model_class.__name__ != "QwenImageDiT":
        raise ValueError(f"model_class: expected QwenImageDiT; found {model_class.__name__}")
    unknown = set(others) - {*_REFUSED, *_TAKEN}
    if unknown:
        raise TypeError(f"serve() got an unexpected keyword argument {min(unknown)!r}")
    for name in _REFUSED:
        if others.get(name):
            raise ValueError(f"{name}: a server can't be told")
    computed = vram_config.get("computation_dtype") or others.get("torch_dtype") or "torch.bfloat16"
    told = {**vram_config, "computation_dtype": computed}
    keys = vram_config_keys(told if module_map is None else {**told, "module_map": module_map})
    types = keys.pop("module_map", {})
    profile = [f"    {key}: {value}" for key, value in keys.items()]
    profile += ["    module_map:", *(f"      {kind}: {wrapper}" for kind, wrapper in types.items())] if types else []
    named = sorted({str(value) for key, value in keys.items() if key.endswith("_device") and str(value).startswith("cuda")})
    devices = sorted({"cuda:0" if name == "cuda" else name for name in named})
    device = [f"device: {{name: [{', '.join(f'{one!r}' for one in devices)}]}}"] if devices else []
    newline = "\n"  # Python before 3.12 has no backslash within braces.
    command = f"""\
cat > ditserve.yaml <<'YAML'
{newline.join([*device, "default_profile: load-model"])}
profiles:
  load-model:
    description: As load_model was told
{newline.join(profile)}
    vram_limit_gib: {"null" if vram_limit is None else vram_limit}
YAML
ditserve --config ditserve.yaml --listen {shlex.quote(address)} --model {shlex.quote(f"qwen-image={_pattern(path)}")}"""
    print(command)
    return command


def _pattern(path: str | Sequence[str]) -> str:
    """One path for all shards: model-*-of-00009.safetensors.

    Errors: ValueError where they are not all the shards of one checkpoint.
    """
    paths = [path] if isinstance(path, str) else list(path)
    if len(paths) == 1:
        return paths[0]
    found = [re.fullmatch(r"(.*-)(\d+)-of-(\d+)\.safetensors", one) for one in paths]
    numbers = {int(match[2]) for match in found if match}
    names = {(match[1], match[3]) for match in found if match}
    if len(names) != 1 or len(numbers) != len(paths) or {int(of) for _, of in names} != {len(paths)}:
        raise ValueError(f"path: expected all shards of one checkpoint; found {', '.join(paths)}")
    ((before, count),) = names
    return f"{before}*-of-{count}.safetensors"
