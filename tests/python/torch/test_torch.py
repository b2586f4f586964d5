"""Tensors of torch go in and come out, and outputs that a server still computes behave as tensors."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import LONG, Inputs, await_residency, busy, idle

import ditserve
from ditserve import _api, _requests, _tensors, _wire
from ditserve._deferred import DeferredTensor, Passes


def tensors(inputs: Inputs, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.from_numpy(array).to(dtype) for array in inputs.all]


@pytest.fixture
def passes(client):
    return Passes(client, {"profile": "disk"})


def begin(passes: Passes, inputs: Inputs, **options) -> torch.Tensor:
    latents, *others = tensors(inputs)
    return passes.begin(latents, *others, None, latents.shape, output_layout="latents", **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_come_back_in_their_dtype(client, dtype):
    exact = client.forward(*Inputs().all).output
    output = client.forward(*tensors(Inputs(), dtype)).output
    assert output.dtype == dtype
    assert abs(output.float().numpy() - exact).max() < 0.03 * abs(exact).max()
    output.zero_()  # It is the caller's.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_an_element_of_a_schedule_is_a_timestep(dtype):
    latents, timestep, prompt = tensors(Inputs(batch=2))
    (element,) = torch.tensor([0.5], dtype=dtype)
    expected = _requests.forward(latents, timestep, prompt, None).request
    assert _requests.forward(latents, element, prompt, None).request == expected


def test_a_loop_whose_latents_numpy_can_not_hold_is_refused_before_it_is_computed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    latents = torch.from_numpy(Inputs().latents).bfloat16()
    with pytest.raises(ImportError, match="pip install ditserve"):
        _requests.denoise(Inputs().prompt_emb, None, height=32, width=32, latents=latents)
    _requests.denoise(torch.from_numpy(Inputs().prompt_emb), None, height=32, width=32, latents=latents)


def test_loops_take_tensors_and_give_them(client):
    run = client.denoise(torch.from_numpy(Inputs().prompt_emb).bfloat16(), height=32, width=32, seeds=[3], steps=2)
    assert run.result().latents.dtype == torch.bfloat16


def test_tensors_that_are_views_or_ask_for_gradients_are_written_as_they_are(client):
    latents, timestep, prompt = tensors(Inputs(tokens=6))
    strided, expanded = prompt[:, ::2], timestep[0].expand(1)
    expected = client.forward(latents, timestep, strided.contiguous()).output
    assert torch.equal(client.forward(latents.requires_grad_(), expanded, strided).output, expected)


def test_dtypes_that_the_api_does_not_know_are_refused(client):
    latents, timestep, prompt = tensors(Inputs())
    with pytest.raises(TypeError, match=r"latents.dtype: expected .*; found 'float64'"):
        client.forward(latents.double(), timestep, prompt)


def test_nothing_is_sent_before_something_is_used_and_then_all(passes, client):
    first, second = begin(passes, Inputs()), begin(passes, Inputs(tokens=5))
    sent = [first._pending, second._pending]
    assert isinstance(first, DeferredTensor)
    assert first.shape == (1, 16, 4, 4)
    assert first.dtype == torch.float32
    assert sent[0].address == sent[1].address == ""
    used = first + 0
    assert type(used) is torch.Tensor
    assert sent[0].address == sent[1].address != ""
    assert first._pending is None  # It held the request and the answer.
    expected = [client.forward(*tensors(one), output_layout="latents").output for one in (Inputs(), Inputs(tokens=5))]
    assert torch.equal(used, expected[0])
    assert torch.equal(second + 0, expected[1])


def test_it_behaves_as_the_tensor_that_it_becomes(passes, client):
    expected = client.forward(*tensors(Inputs()), output_layout="latents").output
    for use in (lambda one: one.numpy(), lambda one: torch.from_numpy(np.asarray(one)), lambda one: one.tolist(),
                lambda one: one.chunk(2, 1)[1], lambda one: torch.cat([one, one]), lambda one: one.to(torch.bfloat16),
                lambda one: copy.deepcopy(one), lambda one: repr(one), lambda one: one.mT, lambda one: one[0, 3],
                lambda one: torch.norm(one, dim=-1, keepdim=True), lambda one: (one > 0).any().item()):
        got, wanted = use(begin(passes, Inputs())), use(expected)
        assert type(got) is type(wanted)
        assert torch.equal(got, wanted) if isinstance(got, torch.Tensor) else np.array_equal(got, wanted)


def test_a_tensor_that_is_written_into_afterwards_changes_nothing(passes, client):
    latents, *others = tensors(Inputs())
    expected = client.forward(latents, *others, output_layout="latents").output
    output = passes.begin(latents, *others, None, latents.shape, output_layout="latents")
    latents.zero_()
    assert torch.equal(output + 0, expected)


def test_an_error_comes_from_the_operation_that_waits_and_ends_the_others(passes, server):
    long = begin(passes, LONG)
    wrong = begin(passes, Inputs(), model="none")
    with pytest.raises(ditserve.errors.NotFound):
        wrong + 1
    await_residency(server.address, idle)
    with pytest.raises(ditserve.errors.Cancelled):
        long + 1


def test_what_an_error_ended_is_not_sent_later(fake):
    fake.answers = [_api.v1("ForwardResponse")(output={"dtype": 1, "shape": [1, 16, 4, 4], "data": bytes(1024)})
                    .SerializeToString()]
    tokens = iter(["no token", "secret"])
    with ditserve.Client(fake.address, token=lambda: next(tokens)) as client:
        passes = Passes(client, {})
        ended = [begin(passes, Inputs()), begin(passes, Inputs())]
        with pytest.raises(ValueError, match="token"):
            ended[0] + 1
        assert (begin(passes, Inputs()) + 1 == 1).all()
    assert len(fake.requests) == 1


def test_where_one_pass_can_not_be_begun_the_other_is_not_sent_later(fake):
    fake.answers = [_api.v1("ForwardResponse")(output={"dtype": 1, "shape": [1, 16, 4, 4], "data": bytes(1024)})
                    .SerializeToString()]
    with ditserve.Client(fake.address) as client:
        passes = Passes(client, {})
        held = begin(passes, Inputs())
        latents, timestep, prompt = tensors(Inputs())
        with pytest.raises(TypeError, match="prompt_emb.dtype"):
            passes.begin(latents, timestep, prompt.double(), None, latents.shape)
        assert (begin(passes, Inputs()) + 1 == 1).all()
        with pytest.raises(ditserve.errors.Cancelled):
            held + 1
    assert len(fake.requests) == 1


def test_an_empty_tensor_comes_back():
    message = b"".join(_tensors.tensor(1, torch.zeros(0, 3), "array"))
    rest, elements = _wire.cut(memoryview(message), (1, 3))
    back = _tensors.received(_api.v1("Prompt").FromString(rest).emb, elements, _tensors.maker(torch.zeros(1)))
    assert back.shape == (0, 3)
    assert back.dtype == torch.float32


def test_outputs_that_nobody_holds_are_not_waited_for(passes, server):
    dropped = begin(passes, LONG)
    dropped._pending.send()
    await_residency(server.address, busy)
    del dropped
    await_residency(server.address, idle)
    assert (begin(passes, Inputs()) + 1).shape == (1, 16, 4, 4)


PEAK = """
import sys
from pathlib import Path

import torch

import ditserve


def resident_bytes(kind):
    told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(told[kind].split()[0]) << 10


address, dtype, batch = sys.argv[1:]
latents, prompt = (torch.ones(int(batch), *rest, dtype=getattr(torch, dtype)) for rest in ((16, 2, 2), (1024, 3584)))
with ditserve.Client(address) as client:
    client.forward(latents, 0.5, prompt[:, :1])  # What is made once.
    Path("/proc/self/clear_refs").write_text("5")  # The peak begins anew.
    before = resident_bytes("VmRSS")
    client.forward(latents, 0.5, prompt)
    print((resident_bytes("VmHWM") - before) / prompt.nbytes)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="no peak of this process can be begun anew")
@pytest.mark.parametrize(("dtype", "batch"), [("float32", 4), ("bfloat16", 8)])
def test_a_request_takes_its_message_and_grpcs_copy_and_no_more(server, dtype, batch):
    done = subprocess.run([sys.executable, "-c", PEAK, server.address, dtype, str(batch)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 1 < float(done.stdout) < 2.5
