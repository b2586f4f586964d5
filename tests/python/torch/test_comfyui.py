"""ComfyUI's node, on a stand-in for ComfyUI's modules: what it computes, shows and refuses, and how it is interrupted."""

from __future__ import annotations

import importlib.util
import sys
import threading
from pathlib import Path

import pytest
import torch
from conftest import LONG, Inputs, await_residency, busy, idle
from diffusers import QwenImageTransformer2DModel
from safetensors.torch import load_file

import ditserve
from ditserve import _api

HERE = Path(__file__).parent
MODELS = _api.v1("ListModelsResponse")(
    models=[{"state": 2, "name": "tiny", "numerics": _api.number("Numerics", "diffusers")}]).SerializeToString()
PROMPTS = [torch.from_numpy(Inputs(tokens=tokens).prompt_emb) for tokens in (5, 2)]


@pytest.fixture(scope="module")
def comfy():
    """The stand-in's modules, and the node, which is loaded as ComfyUI loads it: by its folder."""
    sys.path.insert(0, str(HERE / "comfy_standin"))
    folder = HERE.parents[2] / "client/comfyui"
    spec = importlib.util.spec_from_file_location("ditserve_node", folder / "__init__.py",
                                                  submodule_search_locations=[str(folder)])
    module = importlib.util.module_from_spec(spec)
    sys.modules["ditserve_node"] = module
    spec.loader.exec_module(module)
    import comfy.model_management
    import comfy.samplers
    import comfy.utils

    comfy.node = sys.modules["ditserve_node.nodes"]
    return comfy


@pytest.fixture(scope="module")
def served(checkpoint, one_thread, tmp_path_factory):
    from programs import Server

    with Server(tmp_path_factory.mktemp("s"), "--model", f"tiny={checkpoint},numerics=diffusers",
                "--config", one_thread) as server:
        yield server


@pytest.fixture
def remote(comfy, served):
    with ditserve.Client(served.address) as client:
        config = {"offload_dtype": "disk", "onload_dtype": "disk", "computation_dtype": "float32"}
        yield comfy.node.RemoteDiffusionModel(client, torch.float32, {"vram_config": config})


class ComfyRope:
    """Positions as ComfyUI counts them: from -(h // 2), which differs from diffusers' where h is odd."""

    def __init__(self, axes: list[int]):
        self.axes = axes

    def _rotations(self, positions: torch.Tensor) -> torch.Tensor:
        """[N, 3] to [N, sum(axes) / 2], complex."""
        parts = []
        for axis, dim in enumerate(self.axes):
            angles = torch.outer(positions[:, axis].float(), 10000.0 ** -(torch.arange(0, dim, 2) / dim))
            parts.append(torch.polar(torch.ones_like(angles), angles))
        return torch.cat(parts, dim=1)

    def __call__(self, shapes, device=None, max_txt_seq_len=0, **_):
        (_, rows, columns), = shapes[0]
        image = [(0, row - rows // 2, column - columns // 2) for row in range(rows) for column in range(columns)]
        begin = max(rows // 2, columns // 2)
        text = [(begin + token,) * 3 for token in range(max_txt_seq_len)]
        return self._rotations(torch.tensor(image)), self._rotations(torch.tensor(text))


class LocalDiffusionModel:
    """diffusers' transformer with ComfyUI's positions, called as ComfyUI calls a diffusion model."""

    dtype = torch.float32

    def __init__(self, checkpoint: Path):
        self.model = QwenImageTransformer2DModel.from_config(QwenImageTransformer2DModel.load_config(str(checkpoint)))
        shards = [load_file(shard) for shard in checkpoint.glob("*.safetensors")]
        self.model.load_state_dict({name: tensor.float() for shard in shards for name, tensor in shard.items()})
        del self.model.pos_embed
        self.model.pos_embed = ComfyRope(list(self.model.config.axes_dims_rope))

    @torch.no_grad()
    def __call__(self, x, timestep, context, **_):
        batch, channels, _, height, width = x.shape
        rows, columns = height // 2, width // 2
        tiles = x.view(batch, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5)
        output = self.model(tiles.reshape(batch, rows * columns, channels * 4), encoder_hidden_states=context,
                            timestep=timestep, img_shapes=[[(1, rows, columns)]] * batch, return_dict=False)[0]
        return output.view(batch, rows, columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


def noise(height: int, width: int) -> torch.Tensor:
    return torch.randn(1, 16, 1, height // 8, width // 8, generator=torch.Generator().manual_seed(3))


def model_of(comfy, diffusion_model):
    made = comfy.supported_models.Model()
    made.diffusion_model = diffusion_model
    return made


def bar(comfy) -> list[float]:
    """The shares that were shown, which never fall."""
    shares = [value / total for value, total in comfy.utils.shown]
    assert shares == sorted(shares)
    return shares


def error_of(output: torch.Tensor, expected: torch.Tensor) -> float:
    return ((output - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(("height", "width", "same"), [(64, 96, True), (32, 64, True), (48, 80, False), (64, 80, False)])
def test_sampling_is_comfyuis_where_sides_are_multiples_of_32_pixels(comfy, remote, checkpoint, height, width, same):
    pictures = [comfy.samplers.sample(model_of(comfy, one), noise(height, width), *PROMPTS, 4.0, comfy.samplers.sigmas(3))
                for one in (remote, LocalDiffusionModel(checkpoint))]
    error = error_of(*pictures)
    assert error < 1e-5 if same else error > 1e-3


def test_the_loader_gives_a_model_that_samples(comfy, served):
    comfy.utils.shown.clear()
    (patcher,) = comfy.node.DitserveLoader().load(served.address, "disk", 0.0)
    assert patcher.model.memory_required([1]) == 0
    picture = comfy.samplers.sample(patcher.model, noise(1024, 1024), *PROMPTS, 4.0, comfy.samplers.sigmas(2))
    assert picture.shape == (1, 16, 1, 128, 128)
    assert torch.isfinite(picture).all()
    assert bar(comfy)[-1] == 1


@pytest.mark.parametrize(("evaluated", "done"), [
    ([1.0, 0.5], [0.5, 1]),
    ([1.0, 0.75, 0.5, 0.25], [0.5, 0.5, 1, 1]),  # As DPM-2: in the middle of each step too.
    ([1.0, 0.5, 0.5], [0.5, 1, 1]),  # As Heun's: at the next step's beginning.
    ([1.05, 0.55], [0.5, 0.5]),  # With noise added before a step.
])
def test_the_bar_never_falls_within_a_run_and_begins_anew_with_the_next(comfy, remote, evaluated, done):
    for _ in range(2):
        comfy.utils.shown.clear()
        sigmas = comfy.samplers.sigmas(2)
        for sigma, share in zip(evaluated, done, strict=True):
            current = torch.tensor([sigma])
            for prompt in PROMPTS:
                remote(noise(32, 32), current.clamp(max=1), prompt,
                       transformer_options={"sample_sigmas": sigmas, "sigmas": current})
                assert bar(comfy)[-1] == share


def test_the_bar_of_a_run_of_one_step_begins_anew_too(comfy, remote):
    for _ in range(2):
        comfy.utils.shown.clear()
        remote(noise(32, 32), torch.tensor([1.0]), PROMPTS[0],
               transformer_options={"sample_sigmas": comfy.samplers.sigmas(1), "sigmas": torch.tensor([1.0])})
        assert bar(comfy)[0] < 1
        assert bar(comfy)[-1] == 1


def test_a_model_that_is_told_no_sigmas_shows_a_whole_pass(comfy, remote):
    for _ in range(2):
        comfy.utils.shown.clear()
        remote(noise(32, 32), torch.tensor([0.5]), PROMPTS[0])
        assert bar(comfy)[0] < 1
        assert bar(comfy)[-1] == 1


def test_the_loader_refuses_a_model_of_other_numerics(comfy, server):
    with pytest.raises(ValueError, match="expected `numerics: diffusers`"):
        comfy.node.DitserveLoader().load(server.address, "", -1.0)


def test_the_loader_refuses_a_profile_that_the_server_has_not(comfy, served):
    with pytest.raises(ditserve.errors.NotFound, match="profile: expected one of .*disk.*; found 'none'"):
        comfy.node.DitserveLoader().load(served.address, "none", -1.0)


def test_the_loaders_inputs_are_those_of_its_method(comfy):
    inputs = comfy.node.DitserveLoader.INPUT_TYPES()
    code = comfy.node.DitserveLoader.load.__code__
    assert [*inputs["required"], *inputs["optional"]] == list(code.co_varnames[1:code.co_argcount])
    assert comfy.node.NODE_CLASS_MAPPINGS["DitserveLoader"] is comfy.node.DitserveLoader


def test_under_tls_the_loader_believes_the_authorities_that_the_operator_names(comfy, fake, tmp_path, monkeypatch):
    (tmp_path / "ca.pem").write_text("no certificate")
    monkeypatch.setenv("DITSERVE_CA_FILE", str(tmp_path / "ca.pem"))
    fake.answers = [MODELS]
    with pytest.raises(ditserve.errors.Unavailable):
        comfy.node.DitserveLoader().load(fake.address, "", -1.0)
    assert fake.metadata == []


def test_the_operators_token_goes_to_the_servers_that_the_operator_names_alone(comfy, fakes, tmp_path, monkeypatch):
    (tmp_path / "token").write_text("0123456789abcdef\n")
    monkeypatch.setenv("DITSERVE_TOKEN_FILE", str(tmp_path / "token"))
    for fake in fakes:
        fake.answers = [MODELS]
    with pytest.raises(ValueError, match="address: ComfyUI has a token"):
        comfy.node.DitserveLoader().load(fakes[0].address, "", -1.0)
    monkeypatch.setenv("DITSERVE_ADDRESSES", f"gpu1:50051, {fakes[0].address}")
    assert comfy.node.DitserveLoader().load(fakes[0].address, "", -1.0)
    with pytest.raises(ValueError, match="address: ComfyUI has a token"):
        comfy.node.DitserveLoader().load(fakes[1].address, "", -1.0)
    assert [one["authorization"] for one in fakes[0].metadata] == ["Bearer 0123456789abcdef"]
    assert fakes[1].metadata == []


def test_a_workflow_names_no_file(comfy, fake, tmp_path):
    (tmp_path / "secret").write_text("0123456789abcdef\n")
    fake.answers = [MODELS]
    for name in ("token_file", "ca_file"):
        with pytest.raises(TypeError, match=name):
            comfy.node.DitserveLoader().load(fake.address, "", -1.0, **{name: str(tmp_path / "secret")})
    assert fake.metadata == []


def test_cancel_ends_the_pass_at_the_server(comfy, remote, served):
    x = torch.from_numpy(LONG.latents)[:, :, None]
    threading.Thread(target=lambda: (await_residency(served.address, busy),
                                     comfy.model_management.interrupt_current_processing())).start()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        remote(x, torch.tensor([0.5]), PROMPTS[0])
    await_residency(served.address, idle)
    assert not comfy.model_management.processing_interrupted()
    assert remote(noise(32, 32), torch.tensor([0.5]), PROMPTS[0]).shape == (1, 16, 1, 4, 4)


@pytest.mark.parametrize(("given", "named"), [
    ({"control": {"input": [torch.zeros(1)]}}, "control"),
    ({"ref_latents": [torch.zeros(1)]}, "ref_latents"),
    ({"guidance": torch.zeros(1)}, "guidance"),
    ({"transformer_options": {"patches": {"double_block": [print]}}}, "patches"),
    ({"transformer_options": {"patches_replace": {"dit": {("double_block", 0): print}}}}, "patches_replace"),
    ({"transformer_options": {"optimized_attention_override": print}}, "optimized_attention_override"),
    ({"additional_t_cond": torch.zeros(1)}, "additional_t_cond"),
    ({"attention_mask": torch.zeros(1, 5)}, "attention_mask"),
])
def test_what_can_not_be_done_remotely_is_refused_by_name(remote, given, named):
    with pytest.raises(ValueError, match=f"{named}: can't be done remotely"):
        remote(noise(32, 32), torch.tensor([0.5]), PROMPTS[0], **given)


def test_what_is_empty_is_nothing_to_refuse(remote):
    empty = {"control": {"input": []}, "ref_latents": [], "transformer_options": {"patches_replace": {"dit": {}}}}
    plain = remote(noise(32, 32), torch.tensor([0.5]), PROMPTS[0])
    assert torch.equal(remote(noise(32, 32), torch.tensor([0.5]), PROMPTS[0], **empty), plain)


def test_what_wraps_a_diffusion_model_wraps_the_remote_one(remote):
    def double(executor, *inputs, **others):
        assert executor.class_obj is remote
        assert inputs[-1] is options  # Where EasyCache looks for them.
        return executor(*inputs, **others) * 2

    def skip(executor, *inputs, **others):  # As a step cache does.
        return inputs[0]

    inputs = noise(32, 32), torch.tensor([0.5]), PROMPTS[0]
    options = {"wrappers": {"diffusion_model": {"one": [double], "other": [double]}}}
    assert torch.equal(remote(*inputs, transformer_options=options), remote(*inputs) * 4)
    options = {"wrappers": {"diffusion_model": {"one": [double], "other": [skip]}}}
    assert torch.equal(remote(*inputs, transformer_options=options), inputs[0] * 2)


def test_sides_that_are_no_multiples_of_16_are_refused(remote):
    with pytest.raises(ValueError, match="width, height: 40, 32, expected multiples of 16"):
        remote(noise(32, 40), torch.tensor([0.5]), PROMPTS[0])


def test_what_changes_weights_is_refused_by_clones_too(comfy, served):
    (patcher,) = comfy.node.DitserveLoader().load(served.address, "", -1.0)
    for one in (patcher, patcher.clone(), patcher.clone().clone()):
        with pytest.raises(ValueError, match="LoRA"):
            one.add_patches({})
        with pytest.raises(ValueError, match="LoRA as a hook"):
            one.add_hook_patches(None, {})
        with pytest.raises(ValueError, match="LoRA by a bypass"):
            one.set_injections("bypass_lora", [])
        with pytest.raises(ValueError, match="merging"):
            one.get_key_patches("diffusion_model.")
