"""What both clients get of a live server: arrays in and out, progress, and what it tells."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conftest import LONG, Inputs, await_residency, busy, idle
from programs import Server

import ditserve
from ditserve import _api, _requests, errors

DISK = {
    "offload_dtype": "disk", "offload_device": "disk", "onload_dtype": "disk", "onload_device": "disk",
    "preparing_dtype": "torch.bfloat16", "preparing_device": "accelerator",
    "computation_dtype": "torch.bfloat16", "computation_device": "accelerator",
}


class Linear:
    """A type as module maps name them."""


class AutoWrappedLinear:
    """The same."""


class Blocking:
    """AsyncClient, waited for: so one test tells of both clients."""

    def __init__(self, client: ditserve.AsyncClient, loop: asyncio.AbstractEventLoop):
        self._client, self._loop = client, loop

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def run(*arguments: Any, **options: Any) -> Any:
            made = getattr(self._client, name)(*arguments, **options)
            if not isinstance(made, ditserve.AsyncRun):
                return await made
            return _Ended([event async for event in made], await made.result())

        return lambda *arguments, **options: self._loop.run_until_complete(run(*arguments, **options))


class _Ended:
    def __init__(self, progress: list[Any], result: Any):
        self._progress, self._result = progress, result

    def __iter__(self) -> Any:
        return iter(self._progress)

    def result(self) -> Any:
        return self._result


@pytest.fixture(params=["Client", "AsyncClient"])
def either(request: pytest.FixtureRequest, server: Server, loop: asyncio.AbstractEventLoop) -> Any:
    if request.param == "AsyncClient":
        client = ditserve.AsyncClient(server.address)
        yield Blocking(client, loop)
        loop.run_until_complete(client.close())
    else:
        with ditserve.Client(server.address) as client:
            yield client


def test_a_pass_gives_what_ditctl_is_given(either, server, tmp_path):
    inputs = Inputs()
    arguments = ["--height", "32", "--width", "32", "--profile", "disk", "--output", str(tmp_path / "output.npy")]
    for name, flag in (("latents", "latents"), ("timestep", "timestep-file"), ("prompt_emb", "prompt-emb")):
        np.save(tmp_path / f"{name}.npy", getattr(inputs, name))
        arguments += [f"--{flag}", str(tmp_path / f"{name}.npy")]
    done = server.ditctl("forward", *arguments)
    assert done.returncode == 0, done.stderr
    answer = either.forward(*inputs.all, profile="disk")
    assert (answer.output == np.load(tmp_path / "output.npy")).all()
    assert answer.output.flags.writeable
    assert answer.stats.riders == 1
    assert 0 < answer.stats.compute <= answer.stats.total


def test_every_way_to_hold_the_weights_gives_the_same_bits(either):
    inputs = Inputs(batch=2)
    mask = np.array([[1, 1, 1], [1, 1, 0]])
    expected = either.forward(*inputs.all, mask, profile="disk").output
    for options in ({"vram_config": DISK, "vram_limit": 0}, {"profile": "dynamic"}, {"priority": "batch", "join": "wait"},
                    {"vram_config": {**DISK, "module_map": {Linear: AutoWrappedLinear, "RMSNorm": "AutoWrappedModule"}}}):
        assert (either.forward(*inputs.all, mask, **options).output == expected).all(), options


def test_a_number_is_a_timestep_of_all(either):
    inputs = Inputs(batch=2)
    one = either.forward(inputs.latents, 0.5, inputs.prompt_emb).output
    assert (one == either.forward(*inputs.all).output).all()


@pytest.mark.parametrize("timestep", [0.5, np.float32(0.5), np.float64(0.5), np.array(0.5), Inputs(batch=2).timestep])
def test_numbers_of_any_kind_are_timesteps(timestep):
    inputs = Inputs(batch=2)
    call = _requests.forward(inputs.latents, timestep, inputs.prompt_emb, None)
    assert call.request == _requests.forward(*inputs.all, None).request


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_sixteen_bits_go_in_and_come_out(either, kind):
    inputs, exact = Inputs(dtype=kind), either.forward(*Inputs().all).output
    answer = either.forward(*inputs.all).output
    assert answer.dtype == kind
    assert abs(answer.astype(np.float32) - exact).max() < 0.03 * abs(exact).max()


def test_latents_come_as_pictures_have_them(either):
    inputs = Inputs()
    patches = either.forward(*inputs.all).output
    latents = either.forward(*inputs.all, output_layout="latents").output
    assert latents.shape == (1, 16, 4, 4)
    assert (latents.reshape(16, 2, 2, 2, 2).transpose(1, 3, 0, 2, 4).reshape(1, 4, 64) == patches).all()


def test_messages_may_be_larger_than_four_mebibytes(either):
    inputs = Inputs(side=32, tokens=400)
    assert inputs.prompt_emb.nbytes > 4 << 20
    assert either.forward(*inputs.all).output.shape == (1, 4, 64)
    assert either.forward(*Inputs(side=512, batch=16).all).output.nbytes == 4 << 20


def test_progress_goes_up_to_the_whole_and_the_result_is_the_same(either):
    inputs = Inputs()
    run = either.forward_stream(*inputs.all, profile="disk")
    progress = list(run)
    done = [one.modules_done for one in progress]
    assert done == sorted(done)
    assert {one.stage for one in progress} <= {"queued", "running"}
    assert (run.result().output == either.forward(*inputs.all, profile="disk").output).all()


def test_a_loop_can_be_gone_on_with_from_what_its_progress_showed(either):
    prompt = Inputs(tokens=5).prompt_emb
    asked = {"height": 256, "width": 256, "steps": 6, "true_cfg_scale": 2.0}
    whole = ditserve.Prompt(prompt, np.ones((1, 5), np.int64))
    run = either.denoise(whole, prompt[:, :2], seeds=7, latents_every=1, **asked)
    shown = [one for one in run if one.latents is not None]
    latents = run.result().latents
    assert latents.dtype == np.float32
    # Who reads slowly misses some.
    after = [one.latents_after for one in shown]
    assert after == sorted(set(after))
    assert 0 < after[0] < 6
    rest = either.denoise(prompt, ditserve.Prompt(prompt[:, :2]), latents=shown[0].latents, first_step=after[0], **asked)
    assert (rest.result().latents == latents).all()


def test_a_loop_takes_every_part_of_a_schedule(either):
    prompt, image = Inputs().prompt_emb, Inputs(side=64, dtype=np.float16).latents
    given = {"height": 64, "width": 64, "seeds": [7, 8], "batch": 2, "dtype": "float16"}
    for options in ({"shift": 3.0, "sigmas": [1.0, 0.5], "steps": 2}, {"shift": (1.1, 1.1), "steps": 2},
                    {"steps": 4, "strength": 0.5, "image": image, "mask": np.ones((1, 1, 8, 8), np.float16)},
                    {"steps": 2, "shift_terminal": 0.1}):
        latents = either.denoise(prompt, **given, **options).result().latents
        assert latents.shape == (2, 16, 8, 8)
        assert latents.dtype == np.float16
        assert (latents[0] != latents[1]).any()


@pytest.mark.parametrize("rule", [ditserve.FirstBlockCache(1e6), ditserve.TeaCache(1e6, (0, 0, 0, 1, 0))])
def test_a_step_cache_says_which_steps_it_reused(either, rule):
    prompt = Inputs().prompt_emb
    asked = {"height": 64, "width": 64, "seeds": [7, 8], "batch": 2, "steps": 4}
    run = either.denoise(prompt, prompt[:, :2], step_cache=rule, **asked)
    skipped = [one.steps_skipped for one in run]
    reused = run.result().reused_steps
    assert reused == [ditserve.reports.ReusedStep(step, 2, 2, True) for step in (1, 2, 3)]
    assert skipped == sorted(skipped)
    assert either.denoise(prompt, **asked).result().reused_steps == []
    with pytest.raises(ditserve.errors.InvalidArgument) as refused:
        either.denoise(prompt, step_cache=type(rule)(0.0), **asked).result()
    assert refused.value.field.startswith("step_cache.")


def test_a_bar_shows_progress(client, capsys):
    run = client.denoise(Inputs().prompt_emb, height=32, width=32, seeds=1, steps=2)
    run.result(bar=True)
    assert "100%" in capsys.readouterr().err
    client.forward_stream(*Inputs().all).result(bar=True)
    assert "100%" in capsys.readouterr().err


def test_the_server_tells_of_its_models_and_profiles(either):
    (model,) = either.models()
    assert (model.name, model.type, model.state, model.numerics) == ("tiny", "QwenImageDiT", "ready", "diffsynth")
    tree = either.model()
    assert tree == either.model("tiny")
    assert "QwenImageDiT(" in tree.tree
    assert tree.modules[0].parameters[0] == ditserve.reports.Parameter("weight", [32, 64], "bfloat16")
    profiles = either.profiles()
    assert profiles.default_profile == "disk"
    by_name = {profile.name: profile for profile in profiles.profiles}
    assert by_name["disk"].vram_config["offload_device"] == "disk"
    assert by_name["disk"].vram_limit_gib == 0
    assert by_name["dynamic"].vram_limit_gib is None
    assert by_name["fp8-compute"].vram_config["module_map"] == {"Linear": "AutoWrappedLinear"}


def test_the_server_plans_and_tells_where_every_byte_is(either):
    either.forward(*Inputs().all)
    plan = either.plan(32, 32, prompt_tokens=3, profile="disk")
    assert plan.refusal == ""
    assert plan.first_pass.riders == 1
    assert plan.pace.height
    known = either.plan(32, 32, prompt_tokens=3, profile="disk", known_timestep=True)
    assert known.first_pass.disk_read_bytes < plan.first_pass.disk_read_bytes
    residency = either.residency()
    assert residency.memories[0].tier == "device"
    (model,) = residency.models
    assert model.device_bytes + model.host_bytes + model.disk_bytes == either.models()[0].stored_bytes
    assert {total.source for total in residency.transfers} == {"disk", "host"}


def test_residency_is_watched_until_it_is_left(client, server, loop):
    with client.watch(0.1) as residencies:
        assert next(residencies).models[0].model == next(residencies).models[0].model

    async def watch() -> int:
        count = 0
        async with ditserve.AsyncClient(server.address) as client:
            async for _ in client.watch(0.1):
                count += 1
                if count == 2:
                    break
        return count

    assert loop.run_until_complete(watch()) == 2


def test_errors_name_the_field(either):
    inputs = Inputs()
    with pytest.raises(errors.InvalidArgument) as wrong:
        either.forward(inputs.latents, 0.5, inputs.prompt_emb[:, :, :7])
    assert wrong.value.field == "prompt_emb.shape"
    assert str(wrong.value).startswith("INVALID_ARGUMENT: prompt_emb.shape")
    with pytest.raises(errors.NotFound) as missing:
        either.forward(*inputs.all, profile="none")
    assert missing.value.field == "profile"


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("element", [0, 1023, 1024, 3 * 3584 - 1])
def test_the_first_element_that_is_no_number_is_named(client, element, kind):
    inputs = Inputs(dtype=kind)
    inputs.prompt_emb.reshape(-1)[element:] = np.inf
    with pytest.raises(errors.InvalidArgument, match=f"prompt_emb.data: element {element} is NaN or infinite"):
        client.forward(*inputs.all)


def test_what_can_never_fit_is_told_with_what_it_takes(serve):
    server = serve("--device-budget", "32MiB")
    with ditserve.Client(server.address) as client:
        plan = client.plan(4096, 4096, prompt_tokens=3, vram_config=DISK)
        assert plan.refusal
        assert plan.first_pass is None
        with pytest.raises(errors.FailedPrecondition) as never:
            client.forward(*Inputs(side=4096).all)
    quota = never.value.quota
    assert quota.memory == "device"
    assert quota.needed_bytes > quota.budget_bytes == 32 << 20


def test_what_can_not_be_sent_is_refused_here(client):
    inputs = Inputs()
    for options, message in (({"profile": "disk", "vram_config": DISK}, "expected one of them"),
                             ({"vram_config": {"onload": "cpu"}}, "unknown key 'onload'; expected computation_device"),
                             ({"join": "late"}, "join: expected auto, immediate, wait; found 'late'")):
        with pytest.raises(ValueError, match=message):
            client.forward(*inputs.all, **options)
    with pytest.raises(ValueError, match=r"latents.shape: \[16, 4, 4\], expected \[B, 16, H/8, W/8\]"):
        client.forward(inputs.latents[0], 0.5, inputs.prompt_emb)
    with pytest.raises(TypeError, match="speed"):
        client.forward(*inputs.all, speed=3)
    with pytest.raises(TypeError, match="latents: expected a numpy array or a torch tensor, found list"):
        client.forward([1], 0.5, inputs.prompt_emb)
    with pytest.raises(TypeError, match="prompt.emb: expected a numpy array or a torch tensor, found list"):
        client.denoise([1], height=32, width=32, seeds=1)
    for options in ({"batch": 2}, {"dtype": "float16"}):
        with pytest.raises(ValueError, match="batch, dtype: are those of noise"):
            client.denoise(inputs.prompt_emb, height=32, width=32, latents=inputs.latents, **options)


@pytest.mark.parametrize(("seeds", "sent"), [
    (7, [7]), (0, [0]), (np.int64(7), [7]), (np.int64(0), [0]), (np.array([1, 2]), [1, 2]), (range(2), [0, 1])])
def test_seeds_are_integers_of_any_kind(seeds, sent):
    call = _requests.denoise(Inputs().prompt_emb, None, height=32, width=32, seeds=seeds, batch=len(sent))
    assert list(_api.v1("DenoiseRequest").FromString(call.request).noise.seeds) == sent


def test_what_diffsynth_was_not_told_the_server_is_not_told_either(client):
    # As ModelPool.default_vram_config() and ModelConfig.vram_config() have it.
    default = {
        "offload_dtype": None, "offload_device": None,
        "onload_dtype": "torch.bfloat16", "onload_device": "cpu",
        "preparing_dtype": "torch.bfloat16", "preparing_device": "cpu",
        "computation_dtype": "torch.bfloat16", "computation_device": "cpu",
    }
    kept = {"computation_dtype": "torch.bfloat16", "computation_device": "cpu"}
    assert _requests.vram_config_keys(default) == kept
    assert _requests.vram_config_keys(dict.fromkeys(default)) == {}
    assert _requests.vram_config_keys({**kept, "preparing_dtype": None}) == kept
    assert client.forward(*Inputs().all, vram_config=default).stats.riders == 1


def test_a_call_that_is_begun_leaves_room_for_others(client, server):
    long = client.begin_forward(*LONG.all, profile="disk")
    await_residency(server.address, busy)
    assert not long.done()
    beside = client.begin_forward(*Inputs().all, profile="disk", join="immediate")
    assert beside.address == long.address == server.address
    assert beside.result().stats.riders == 2
    long.cancel()
    await_residency(server.address, idle)
