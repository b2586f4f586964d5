"""The model that a pipeline is given: every server is asked for it, and the one that differs is named."""

from __future__ import annotations

import re

import grpc
import pytest
from conftest import details

import ditserve
from ditserve import _api, _requests, errors
from ditserve._models import served_model

PROFILES = _api.v1("ListProfilesResponse")(profiles=[{"name": "disk"}, {"name": "dynamic"}]).SerializeToString()
NOBODY = "127.0.0.1:1"


def models(numerics: str = "diffusers", **given: object) -> bytes:
    """What a server of one model tells."""
    model = {"name": "tiny", "type": "QwenImageDiT", "state": 2, "blocks": 1, "parameters": 10, "stored_bytes": 20,
             "numerics": _api.number("Numerics", numerics), **given}
    return _api.v1("ListModelsResponse")(models=[model]).SerializeToString()


@pytest.fixture
def client(fakes):
    for fake in fakes:
        fake.answers = [models()]
    with ditserve.Client([fake.address for fake in fakes]) as client:
        yield client


def test_every_server_is_asked_and_of_models_alike_either_is_given(client, fakes):
    assert served_model(client, {}, "diffusers").name == "tiny"
    assert [len(fake.requests) for fake in fakes] == [1, 1]


def test_a_server_that_loads_is_passed_over_where_another_does_not(client, fakes):
    loading = _api.v1("ListModelsResponse")(models=[{"name": "tiny", "type": "QwenImageDiT", "state": 1}])
    fakes[0].answers = [loading.SerializeToString()]
    assert served_model(client, {}, "diffusers").blocks == 1
    fakes[1].answers = [loading.SerializeToString()]
    with pytest.raises(errors.Unavailable, match=f"{re.escape(fakes[0].address)}: model: 'tiny' is loading"):
        served_model(client, {}, "diffusers")


@pytest.mark.parametrize(("other", "found"), [
    ({"numerics": "diffsynth"}, "expected `numerics: diffusers`; the server has diffsynth's"),
    ({"name": "large"}, "name: expected 'tiny', .* found 'large'"),
    ({"type": "OtherDiT"}, "type: expected 'QwenImageDiT', .* found 'OtherDiT'"),
    ({"blocks": 2}, "blocks: expected 1, .* found 2"),
    ({"parameters": 11}, "parameters: expected 10, .* found 11"),
    ({"stored_bytes": 21}, "stored_bytes: expected 20, .* found 21"),
])
def test_a_server_of_another_model_is_named(client, fakes, other, found):
    fakes[1].answers = [models(**other)]
    with pytest.raises(ValueError, match=f"^{re.escape(fakes[1].address)}: .*{found}"):
        served_model(client, {}, "diffusers")


def test_a_server_without_the_model_is_named(client, fakes):
    fakes[1].answers = [models(name="large")]
    with pytest.raises(errors.NotFound, match=f"{re.escape(fakes[1].address)}: model: expected one of large; found 'tiny'"):
        served_model(client, {"model": "tiny"}, "diffusers")


@pytest.mark.parametrize("code", [
    grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED])
@pytest.mark.parametrize("out", [0, 1])
def test_a_server_that_is_out_of_reach_is_passed_over_where_another_answers(client, fakes, out, code):
    fakes[out].answers = [details(code, "not now", RetryInfo={"retry_delay": {"seconds": 3600}})]  # Which nobody waits for.
    assert served_model(client, {}, "diffusers").name == "tiny"
    fakes[1 - out].answers = [models("diffsynth")]
    with pytest.raises(ValueError, match=re.escape(fakes[1 - out].address)):
        served_model(client, {}, "diffusers")


def test_a_server_that_is_not_there_is_passed_over_and_none_that_refuses(fake):
    fake.answers = [models()]
    with ditserve.Client([NOBODY, fake.address]) as client:
        assert served_model(client, {}, "diffusers").name == "tiny"
    with ditserve.Client([NOBODY]) as client, pytest.raises(errors.Unavailable):
        served_model(client, {}, "diffusers")
    fake.answers = [details(grpc.StatusCode.UNAUTHENTICATED, "no token")]
    with ditserve.Client([NOBODY, fake.address]) as client, pytest.raises(errors.Unauthenticated):
        served_model(client, {}, "diffusers")


def test_a_profile_that_a_server_has_not_is_named_with_those_that_it_has(client, fakes):
    fakes[0].answers = [models(), PROFILES]
    fakes[1].answers = [models(), _api.v1("ListProfilesResponse")(profiles=[{"name": "disk"}]).SerializeToString()]
    missing = f"{re.escape(fakes[1].address)}: profile: expected one of disk; found 'dynamic'"
    with pytest.raises(errors.NotFound, match=missing) as raised:
        served_model(client, {"profile": "dynamic"}, "diffusers")
    assert raised.value.field == "profile"
    for fake in fakes:
        fake.answers = [models(), PROFILES]
    assert served_model(client, {"profile": "disk"}, "diffusers").blocks == 1


@pytest.mark.parametrize(("options", "error", "named"), [
    ({"profil": "disk"}, TypeError, "profil"),
    ({"profile": "disk", "vram_config": {}}, ValueError, "profile, vram_config: expected one of them"),
    ({"vram_config": {"onload": "cpu"}}, ValueError, "vram_config: unknown key 'onload'"),
    ({"priority": "high"}, ValueError, "priority: expected batch, interactive; found 'high'"),
])
def test_options_that_no_pass_can_have_are_refused_without_a_pass(options, error, named):
    with pytest.raises(error, match=named):
        _requests.require_options(options)


def test_options_of_a_pass_and_its_timeout_are_taken():
    _requests.require_options({"profile": "disk", "vram_limit": 0, "model": "tiny", "join": "wait", "timeout": 3})
