"""What a server tells. Bytes are ints, times are seconds, and `proto/ditserve/v1` says what each name means."""

import dataclasses
import functools
import types
import typing
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, cast

from . import _api
from ._tensors import ArrayT

Tier = Literal["disk", "host", "device"]
ReportT = TypeVar("ReportT")


@dataclass(frozen=True)
class Model:
    """A loaded model. state: "loading" or "ready"; numerics: "diffsynth" or "diffusers"."""

    name: str
    type: str
    state: str
    blocks: int
    parameters: int
    stored_bytes: int
    numerics: str


@dataclass(frozen=True)
class Parameter:
    """Of a module; its dtype is the checkpoint's."""

    name: str
    shape: list[int]
    dtype: str


@dataclass(frozen=True)
class Module:
    """A leaf that holds parameters: the unit that moves. tiers: those that hold a copy now, nearest first."""

    path: str
    type: str
    parameters: list[Parameter]
    tiers: list[Tier]


@dataclass(frozen=True)
class ModelTree:
    """A model, as print(model) shows it, and its modules in execution order."""

    model: Model
    tree: str
    modules: list[Module]


@dataclass(frozen=True)
class Profile:
    """vram_limit_gib: None where only the server's budget is the limit."""

    name: str
    description: str
    vram_config: dict[str, Any]
    vram_limit_gib: float | None


@dataclass(frozen=True)
class Profiles:
    profiles: list[Profile]
    default_profile: str


@dataclass(frozen=True)
class MemoryUse:
    """One memory's ledger: weights + staging + activations + runtime + modulation is what is reserved now."""

    tier: Tier
    device: str
    budget_bytes: int
    weights_bytes: int
    staging_bytes: int
    activations_bytes: int
    peak_bytes: int
    wanted_budget_bytes: int
    evictions: int
    other_processes_bytes: int
    runtime_bytes: int
    modulation_bytes: int


@dataclass(frozen=True)
class ModelResidency:
    """A model's stored bytes by the nearest tier that holds them."""

    model: str
    device_bytes: int
    host_bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class Rider:
    """A request that is being computed."""

    model: str
    profile: str
    modules_done: int
    modules_total: int
    priority: str
    awaits_sweep: bool
    stall: float
    device: str


@dataclass(frozen=True)
class TransferTotal:
    """Bytes moved since the server started. `from` is a word of Python's: source and target."""

    source: Tier = dataclasses.field(metadata={"name": "from"})
    target: Tier = dataclasses.field(metadata={"name": "to"})
    bytes: int
    device: str


@dataclass(frozen=True)
class Residency:
    """Where every byte is, at one moment. predicted_wait: seconds until a request that came now would be admitted."""

    memories: list[MemoryUse]
    models: list[ModelResidency]
    riders: list[Rider]
    requests_waiting: int
    transfers: list[TransferTotal]
    predicted_wait: float


@dataclass(frozen=True)
class PlannedPass:
    """One pass of all requests that come together. time: None while something it rests on was never measured."""

    memories: list[MemoryUse]
    disk_read_bytes: int
    device_copy_bytes: int
    riders: int
    time: float | None
    compute: float | None


@dataclass(frozen=True)
class Pace:
    """What the server has measured; None: never."""

    disk_bytes_per_second: float | None
    copy_bytes_per_second: float | None
    height: int | None
    width: int | None
    fresh_bytes_per_second: float | None


@dataclass(frozen=True)
class Offer:
    """Another way to ask. profile "" and sizes 0: the same."""

    profile: str
    without_limit: bool
    height: int
    width: int
    equal_values: bool
    repeated_pass: PlannedPass | None


@dataclass(frozen=True)
class Plan:
    """What passes are predicted to take. refusal: "" where the server lets them in."""

    refusal: str
    activation_bytes: int
    window_bytes: int
    first_pass: PlannedPass | None
    repeated_pass: PlannedPass | None
    pace: Pace | None
    offers: list[Offer]


@dataclass(frozen=True)
class ForwardStats:
    """What one request took. Seconds and bytes; see `transformer_service.proto`."""

    queue: float
    stall: float
    compute: float
    total: float
    disk_read_bytes: int
    device_copy_bytes: int
    peak_device_bytes: int
    riders: int
    non_finite_elements: int
    device: str


@dataclass(frozen=True)
class Forward(Generic[ArrayT]):
    """output: [B, H/16 * W/16, 64], or [B, 16, H/8, W/8] where latents were asked for; of the latents' dtype and kind."""

    output: ArrayT
    stats: ForwardStats


@dataclass(frozen=True)
class ForwardProgress:
    """stage: "queued" or "running". Modules finished, of all; bytes moved so far."""

    stage: str
    modules_done: int
    modules_total: int
    disk_read_bytes: int
    device_copy_bytes: int


@dataclass(frozen=True)
class ReusedStep:
    """A step, from 0, at which a step cache had what blocks add: for so many images, and negative prompts of so many.

    skipped: for all, so that the step took no part in the sweep.
    """

    step: int
    images: int
    negative_images: int
    skipped: bool


@dataclass(frozen=True)
class Denoised(Generic[ArrayT]):
    """latents: [B, 16, H/8, W/8], in the loop's dtype, of the prompt's kind."""

    latents: ArrayT
    stats: ForwardStats
    reused_steps: list[ReusedStep]


@dataclass(frozen=True)
class DenoiseProgress(Generic[ArrayT]):
    """Steps and modules finished, of all. latents: where they were asked for, what there was after `latents_after` steps."""

    stage: str
    steps_done: int
    steps: int
    modules_done: int
    modules_total: int
    disk_read_bytes: int
    device_copy_bytes: int
    latents: ArrayT | None
    latents_after: int
    steps_skipped: int


def report(cls: type[ReportT], message: Any, **given: Any) -> ReportT:
    """The dataclass that tells what the message does; `given` are fields that it does not hold."""
    values = {
        name: _value(message, told, hint) for name, told, hint in _told_fields(cast(Hashable, cls)) if name not in given
    }
    return cls(**values, **given)


@functools.cache
def _told_fields(cls: Any) -> list[tuple[str, str, Any]]:
    hints = typing.get_type_hints(cls)
    return [(field.name, field.metadata.get("name", field.name), hints[field.name]) for field in dataclasses.fields(cls)]


def _value(message: Any, name: str, hint: Any) -> Any:
    field = message.DESCRIPTOR.fields_by_name[name]
    if typing.get_origin(hint) is types.UnionType:  # T | None
        if not message.HasField(name):
            return None
        hint = typing.get_args(hint)[0]
    value = getattr(message, name)
    if typing.get_origin(hint) is list:
        return [_one(field, item, typing.get_args(hint)[0]) for item in value]
    return _one(field, value, hint)


def _one(field: Any, value: Any, hint: Any) -> Any:
    if field.enum_type is not None:
        return _api.name(field.enum_type.name, value)
    if field.message_type is None:
        return value
    if hint is float:
        return value.seconds + value.nanos / 1e9
    if dataclasses.is_dataclass(hint):
        return report(hint, value)  # type: ignore[arg-type]
    return _dict(value)


def _dict(message: Any) -> dict[str, Any]:
    """The keys of a vram_config that are set."""
    return {field.name: dict(value) if field.message_type is not None else value for field, value in message.ListFields()}
