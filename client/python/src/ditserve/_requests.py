"""The API's calls: the bytes that are sent, and what is made of those that come back. No connection is needed for it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypedDict, TypeVar

import numpy as np
from google.protobuf.message import DecodeError

from . import _api, _wire, reports
from ._tensors import Array, ArrayT, Number, dtype_name, is_torch, maker, numpy_dtype, received, require_array, tensor
from .errors import Internal

Priority = Literal["interactive", "batch"]
Join = Literal["auto", "immediate", "wait"]
Layout = Literal["patches", "latents"]
T = TypeVar("T")

_PROGRESS_TENSOR = _api.path("DenoiseResponse", "progress", "latents", "data")
_RESULT_TENSOR = _api.path("DenoiseResponse", "result", "latents", "data")
_OUTPUT_TENSOR = _api.path("ForwardResponse", "output", "data")
(_STREAMED_REQUEST,) = _api.path("ForwardStreamRequest", "request")
_STREAMED_RESPONSE = _api.path("ForwardStreamResponse", "response")
_STATIONS = ("offload", "onload", "preparing", "computation")
_KEYS = {f"{station}_{kind}" for station in _STATIONS for kind in ("dtype", "device")}


class Prompt(NamedTuple):
    """Embeddings [B, T, 3584], or [1, T, 3584] for all images, and which tokens count, [B, T]; None: all."""

    emb: Array
    mask: Array | None = None


class PlanOptions(TypedDict, total=False):
    """model, profile, vram_config, vram_limit, timeout: as in Options."""

    model: str
    profile: str
    vram_config: Mapping[str, Any] | None
    vram_limit: float | None
    timeout: float | None


class Options(PlanOptions, total=False):
    """What every pass may be told.

    model: name of a loaded one; may be left out where the server has one.
    profile, vram_config: how the weights are held: a configured profile's name, or DiffSynth-Studio's dict, key for key,
        dtypes and devices as strings or torch's own. It may hold a `module_map`. Neither: the server's default profile.
    vram_limit: GiB of device memory; overrides the profile's.
    priority: "batch" computes when no interactive request is ready.
    join: when a request begins that finds others under way: "auto", "immediate" or "wait" (with the next sweep).
    timeout: seconds for the whole call, all tries together; None: as long as it takes, or the client's own.
    """

    priority: Priority
    join: Join


class ForwardOptions(Options, total=False):
    """output_layout: "patches", the packed sequence [B, H/16 * W/16, 64], or "latents", [B, 16, H/8, W/8]."""

    output_layout: Layout


@dataclass(frozen=True)
class FirstBlockCache:
    """diffusers' rule: what the other blocks added is reused where the first one adds nearly what it added then.

    threshold: mean absolute difference over mean magnitude; above 0.
    """

    threshold: float


@dataclass(frozen=True)
class TeaCache:
    """What all blocks added is reused until changes of the first one's input add up to the threshold.

    threshold: above 0; published for Qwen-Image: 0.2. coefficients: of the polynomial that weighs a change, highest power
    first; 5, or none for models of 60 blocks, which have published ones.
    """

    threshold: float
    coefficients: Sequence[float] = ()


class DenoiseOptions(Options, total=False):
    """What a denoising loop may be told (docs/denoise.md).

    seeds: of torch.Generator.manual_seed, one for the batch or one for each image. Needed where there are no latents.
    batch: images that are made of seeds; 1 if left out.
    dtype: of a loop from seeds; the prompt's if left out.
    latents: what the loop starts from, or goes on with, [B, 16, H/8, W/8]. Left out: noise.
    first_step: steps that another call made, which ended with `latents`.
    image, mask: to begin from, [B or 1, 16, H/8, W/8], and 1 where it is made anew, [B or 1, 1, H/8, W/8].
    strength: how much of `image` is made anew, above 0 and at most 1.
    steps: 1 to 1000; 50 if left out.
    sigmas: to start from in the place of even ones: falling, each above 0 and at most 1.
    shift: one number for all sizes, or diffusers' (base_shift, max_shift). Left out: Qwen-Image's.
    shift_terminal: the last step's sigma; left out: 0.02 with Qwen-Image's own shift, else none.
    true_cfg_scale: guidance, where there is a negative prompt; 4 if left out.
    latents_every: every so many steps progress carries the latents, of which a client that reads slowly misses some.
    step_cache: lets steps reuse what blocks added at earlier ones: approximate, and off if left out.
    """

    seeds: int | Sequence[int]
    batch: int
    dtype: str
    latents: Array | None
    first_step: int
    image: Array | None
    mask: Array | None
    strength: float | None
    steps: int
    sigmas: Sequence[float]
    shift: float | tuple[float, float] | None
    shift_terminal: float | None
    true_cfg_scale: float | None
    latents_every: int
    step_cache: FirstBlockCache | TeaCache | None


@dataclass(frozen=True)
class Call(Generic[T]):
    """One call of a method. decode: makes the answer, or each of them, of a message."""

    service: str
    method: str
    request: bytes
    decode: Callable[[bytes], T]

    @property
    def path(self) -> str:
        return f"/ditserve.v1.{self.service}/{self.method}"

    def read(self, message: bytes) -> T:
        """Errors: Internal where it can't be read."""
        try:
            return self.decode(message)
        except (DecodeError, ValueError) as error:
            raise Internal(f"{self.method}'s answer can't be read: {error}") from None


def forward(
    latents: ArrayT, timestep: Number | Array, prompt_emb: Array, prompt_emb_mask: Array | None, **options: Any
) -> Call[reports.Forward[ArrayT]]:
    pieces = _forward_pieces(latents, timestep, prompt_emb, prompt_emb_mask, **options)
    decode = _forward_decoder(latents)
    return Call("TransformerService", "Forward", b"".join(pieces), lambda answer: decode(memoryview(answer)))


def forward_stream(
    latents: ArrayT, timestep: Number | Array, prompt_emb: Array, prompt_emb_mask: Array | None, **options: Any
) -> Call[reports.ForwardProgress | reports.Forward[ArrayT]]:
    pieces = _forward_pieces(latents, timestep, prompt_emb, prompt_emb_mask, **options)
    decode_response = _forward_decoder(latents)

    def decode(answer: bytes) -> reports.ForwardProgress | reports.Forward[ArrayT]:
        rest, response = _wire.cut(memoryview(answer), _STREAMED_RESPONSE)
        if response is not None:
            return decode_response(response)
        return reports.report(reports.ForwardProgress, _api.v1("ForwardStreamResponse").FromString(rest).progress)

    return Call("TransformerService", "ForwardStream", b"".join(_wire.field(_STREAMED_REQUEST, pieces)), decode)


def denoise(
    prompt: Prompt | Array, negative_prompt: Prompt | Array | None, *, height: int, width: int, **options: Any
) -> Call[reports.DenoiseProgress[Any] | reports.Denoised[Any]]:
    positive = prompt if isinstance(prompt, Prompt) else Prompt(prompt)
    negative = negative_prompt if isinstance(negative_prompt, Prompt | None) else Prompt(negative_prompt)
    pieces = _denoise_pieces(positive, negative, height=height, width=width, **options)
    make = maker(positive.emb)

    def decode(answer: bytes) -> reports.DenoiseProgress[Any] | reports.Denoised[Any]:
        rest, elements = _wire.cut(memoryview(answer), _PROGRESS_TENSOR, _RESULT_TENSOR)
        message = _api.v1("DenoiseResponse").FromString(rest)
        if message.HasField("result"):
            latents = received(message.result.latents, elements, make)
            reused = [reports.report(reports.ReusedStep, each) for each in message.result.reused_steps]
            return reports.Denoised(latents, reports.report(reports.ForwardStats, message.result.stats), reused)
        shown = None if elements is None else received(message.progress.latents, elements, make)
        return reports.report(reports.DenoiseProgress, message.progress, latents=shown)

    return Call("DenoiseService", "Denoise", b"".join(pieces), decode)


def models() -> Call[list[reports.Model]]:
    def decode(answer: bytes) -> list[reports.Model]:
        return [reports.report(reports.Model, model) for model in _api.v1("ListModelsResponse").FromString(answer).models]

    return Call("ModelService", "ListModels", b"", decode)


def model(name: str) -> Call[reports.ModelTree]:
    request = _api.v1("GetModelRequest")(model=name).SerializeToString()
    return Call("ModelService", "GetModel", request, _decoder(reports.ModelTree, "GetModelResponse"))


def profiles() -> Call[reports.Profiles]:
    return Call("ModelService", "ListProfiles", b"", _decoder(reports.Profiles, "ListProfilesResponse"))


def plan(
    height: int,
    width: int,
    prompt_tokens: int,
    batch: int,
    riders: int,
    known_timestep: bool,
    *,
    model: str = "",
    **residency: Any,
) -> Call[reports.Plan]:
    request = _api.v1("PlanRequest")(
        model=model,
        height=height,
        width=width,
        batch=batch,
        prompt_tokens=prompt_tokens,
        riders=riders,
        known_timestep=known_timestep,
        **_residency(**residency),
    )
    return Call("ModelService", "Plan", request.SerializeToString(), _decoder(reports.Plan, "PlanResponse", "plan"))


def residency() -> Call[reports.Residency]:
    decode = _decoder(reports.Residency, "GetResidencyResponse", "residency")
    return Call("ResidencyService", "GetResidency", b"", decode)


def watch(interval: float) -> Call[reports.Residency]:
    request = _api.v1("WatchResidencyRequest")()
    request.interval.seconds, request.interval.nanos = int(interval), round(interval % 1 * 1e9)
    decode = _decoder(reports.Residency, "WatchResidencyResponse", "residency")
    return Call("ResidencyService", "WatchResidency", request.SerializeToString(), decode)


def _decoder(cls: type[T], response: str, field: str = "") -> Callable[[bytes], T]:
    def decode(answer: bytes) -> T:
        message = _api.v1(response).FromString(answer)
        return reports.report(cls, getattr(message, field) if field else message)

    return decode


def _forward_decoder(latents: ArrayT) -> Callable[[memoryview], reports.Forward[ArrayT]]:
    make = maker(latents)

    def decode(answer: memoryview) -> reports.Forward[ArrayT]:
        rest, elements = _wire.cut(answer, _OUTPUT_TENSOR)
        message = _api.v1("ForwardResponse").FromString(rest)
        stats = reports.report(reports.ForwardStats, message.stats)
        return reports.Forward(received(message.output, elements, make), stats)

    return decode


def _forward_pieces(
    latents: Array,
    timestep: Any,
    prompt_emb: Array,
    prompt_emb_mask: Array | None,
    *,
    output_layout: Layout = "patches",
    **options: Any,
) -> list[_wire.Buffer]:
    require_array(latents, "latents")
    if isinstance(timestep, int | float) or getattr(timestep, "ndim", None) == 0:  # One of a schedule's, of any kind.
        timestep = np.full(latents.shape[:1], float(timestep), np.float32)
    if latents.ndim != 4:
        raise ValueError(f"latents.shape: {list(latents.shape)}, expected [B, 16, H/8, W/8]")
    height, width = (side * 8 for side in latents.shape[2:])
    head = _api.v1("ForwardRequest")(
        height=height, width=width, output_layout=_api.number("OutputLayout", output_layout), **_shared(**options)
    )
    return [
        head.SerializeToString(),
        *_tensor("ForwardRequest", "latents", latents),
        *_tensor("ForwardRequest", "timestep", timestep),
        *_tensor("ForwardRequest", "prompt_emb", prompt_emb),
        *_tensor("ForwardRequest", "prompt_emb_mask", prompt_emb_mask),
    ]


def _step_cache(rule: FirstBlockCache | TeaCache | None) -> Any:
    if rule is None:
        return None
    message = _api.v1("StepCache")()
    if isinstance(rule, FirstBlockCache):
        message.first_block.threshold = rule.threshold
    else:
        message.tea.threshold = rule.threshold
        message.tea.coefficients.extend(rule.coefficients)
    return message


def _denoise_pieces(
    prompt: Prompt,
    negative_prompt: Prompt | None,
    *,
    height: int,
    width: int,
    seeds: int | Sequence[int] = (),
    batch: int = 1,
    dtype: str = "",
    latents: Array | None = None,
    first_step: int = 0,
    image: Array | None = None,
    mask: Array | None = None,
    true_cfg_scale: float | None = None,
    latents_every: int = 0,
    step_cache: FirstBlockCache | TeaCache | None = None,
    steps: int = 50,
    sigmas: Sequence[float] = (),
    shift: float | tuple[float, float] | None = None,
    shift_terminal: float | None = None,
    strength: float | None = None,
    **options: Any,
) -> list[_wire.Buffer]:
    require_array(prompt.emb, "prompt.emb")
    if latents is not None:
        require_array(latents, "latents")
        _require_answerable(dtype_name(latents), prompt.emb)
    schedule = _api.v1("Schedule")(steps=steps, sigmas=sigmas, shift_terminal=shift_terminal, strength=strength)
    if isinstance(shift, tuple):
        schedule.dynamic.base_shift, schedule.dynamic.max_shift = shift
    elif shift is not None:
        schedule.fixed = shift
    head = _api.v1("DenoiseRequest")(
        height=height,
        width=width,
        true_cfg_scale=true_cfg_scale,
        schedule=schedule,
        noise=_noise(_seeds(seeds), batch, dtype, prompt.emb),
        first_step=first_step,
        latents_every=latents_every,
        step_cache=_step_cache(step_cache),
        **_shared(**options),
    )
    return [
        head.SerializeToString(),
        *_prompt("prompt", prompt),
        *([] if negative_prompt is None else _prompt("negative_prompt", negative_prompt)),
        *_tensor("DenoiseRequest", "latents", latents),
        *_tensor("DenoiseRequest", "image", image),
        *_tensor("DenoiseRequest", "mask", mask),
    ]


def _prompt(name: str, prompt: Prompt) -> list[_wire.Buffer]:
    pieces = [*_tensor("Prompt", "emb", prompt.emb, f"{name}."), *_tensor("Prompt", "mask", prompt.mask, f"{name}.")]
    return _wire.field(_api.path("DenoiseRequest", name)[0], pieces)


def _tensor(message: str, field: str, array: Array | None, prefix: str = "") -> list[_wire.Buffer]:
    return tensor(_api.path(message, field)[0], array, prefix + field)


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    """numpy's and torch's integers are some too."""
    try:
        return [operator.index(seeds)]  # type: ignore[arg-type]
    except TypeError:
        return [operator.index(seed) for seed in seeds]  # type: ignore[union-attr]


def _noise(seeds: Sequence[int], batch: int, dtype: str, kind: Array) -> Any:
    """Nothing where there is no seed. Errors: ValueError for what is then said of it."""
    if not seeds:
        if batch != 1 or dtype:
            raise ValueError("batch, dtype: are those of noise, of which there is none without seeds")
        return None
    dtype = dtype or dtype_name(kind)
    _require_answerable(dtype, kind)
    return _api.v1("Noise")(seeds=seeds, batch=batch, dtype=_api.number("Dtype", dtype))


def _require_answerable(dtype: str, kind: Array) -> None:
    """Refuses before it is computed what can't be answered. Errors: ImportError."""
    if not is_torch(kind):
        numpy_dtype(dtype)


def _shared(
    *,
    model: str = "",
    priority: Priority = "interactive",
    join: Join = "auto",
    **residency: Any,
) -> dict[str, Any]:
    return {
        "model": model,
        "priority": _api.number("Priority", priority),
        "join": _api.number("Join", join),
        **_residency(**residency),
    }


def require_options(options: Mapping[str, Any]) -> None:
    """Errors: those that a pass with these options would be refused with here."""
    _api.v1("ForwardRequest")(**_shared(**{name: value for name, value in options.items() if name != "timeout"}))


def _residency(
    *, profile: str = "", vram_config: Mapping[str, Any] | None = None, vram_limit: float | None = None
) -> dict[str, Any]:
    if profile and vram_config is not None:
        raise ValueError("profile, vram_config: expected one of them")
    fields: dict[str, Any] = {"vram_limit_gib": vram_limit}
    if profile:
        fields["profile"] = profile
    if vram_config is not None:
        fields["vram_config"] = _api.v1("VramConfig")(**vram_config_keys(vram_config))
    return fields


def vram_config_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """DiffSynth-Studio's dict with everything as the API writes it: torch's dtypes and devices as strings, types by name.

    None is what DiffSynth-Studio was not told, and is left out. Where that is an offload dtype or device, weights stay where
    they are computed, whatever else the dict has: so does its ModelPool.default_vram_config().

    Errors: ValueError for a key that is none of its.
    """
    unknown = set(config) - _KEYS - {"module_map"}
    if unknown:
        raise ValueError(f"vram_config: unknown key {min(unknown)!r}; expected {', '.join(sorted(_KEYS))}, module_map")
    keys: dict[str, Any] = {key: str(value) for key, value in config.items() if key in _KEYS and value is not None}
    if any(key in config and config[key] is None for key in ("offload_dtype", "offload_device")):
        return {key: value for key, value in keys.items() if key.startswith("computation_")}
    if config.get("module_map"):
        keys["module_map"] = {_type_name(kind): _type_name(wrapper) for kind, wrapper in config["module_map"].items()}
    return keys


def _type_name(kind: type | str) -> str:
    return kind if isinstance(kind, str) else kind.__name__
