"""Pipelines at a server: what can't be done is refused, and what ends them ends their passes.

What comes of them is compared with the packages' own by scripts/parity/live_pipelines.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from conftest import Inputs, await_residency, idle
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline

import ditserve
import ditserve.diffsynth
from ditserve import _api
from ditserve.diffusers import RemoteTransformer

PROMPT = torch.from_numpy(Inputs(tokens=5).prompt_emb)


@pytest.fixture(params=["diffusers", "diffsynth"])
def numerics(request):
    return request.param


def diffusers_pipeline(client: ditserve.Client, side: int = 32, steps: int = 2, **given):
    """Gives what runs it."""
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipe = QwenImagePipeline(scheduler=scheduler, vae=None, text_encoder=None, tokenizer=None, transformer=None)
    pipe.transformer = RemoteTransformer(client, profile="disk")
    pipe.set_progress_bar_config(disable=True)
    return lambda: pipe(prompt_embeds=PROMPT, negative_prompt_embeds=PROMPT[:, :2], height=side, width=side,
                        num_inference_steps=steps, output_type="latent", **given).images


def diffsynth_pipeline(client: ditserve.Client, side: int = 32, steps: int = 2, held=None, **given):
    """held: how weights are; what attach takes."""
    from diffsynth.pipelines import qwen_image

    class Prompts(qwen_image.PipelineUnit):
        def __init__(self):
            super().__init__(take_over=True)

        def process(self, pipe, inputs_shared, inputs_posi, inputs_nega):
            for inputs, prompt in ((inputs_posi, PROMPT), (inputs_nega, PROMPT[:, :2])):
                inputs |= {"prompt_emb": prompt, "prompt_emb_mask": torch.ones(prompt.shape[:2], dtype=torch.int64)}
            return inputs_shared, inputs_posi, inputs_nega

    class Vae:
        def decode(self, latents, **_):
            return latents

    pipe = qwen_image.QwenImagePipeline(device="cpu", torch_dtype=torch.float32)
    pipe.vae, pipe.vae_output_to_image = Vae(), lambda latents: latents
    pipe.units = [qwen_image.QwenImageUnit_ShapeChecker(), Prompts(), qwen_image.QwenImageUnit_NoiseInitializer(),
                  qwen_image.QwenImageUnit_InputImageEmbedder()]
    pipe = ditserve.diffsynth.attach(pipe, client, **(held or {"profile": "disk"}))
    return lambda: pipe(height=side, width=side, num_inference_steps=steps, seed=1, progress_bar_cmd=lambda x: x, **given)


PIPELINES = {"diffusers": diffusers_pipeline, "diffsynth": diffsynth_pipeline}


def test_drop_ins_are_named_without_being_imported():
    program = "import ditserve; ditserve.diffsynth.attach, ditserve.diffusers.RemoteTransformer"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_pipeline_of_another_numerics_is_refused(serve, numerics):
    other = {"diffusers": "diffsynth", "diffsynth": "diffusers"}[numerics]
    with ditserve.Client(serve(numerics=other).address) as client:
        with pytest.raises(ValueError, match=f"expected `numerics: {numerics}`; the server has {other}'s"):
            PIPELINES[numerics](client)
        with pytest.raises(ditserve.errors.NotFound, match="expected one of tiny; found 'large'"):
            RemoteTransformer(client, model="large")


def test_options_that_no_pass_can_have_are_refused_before_a_picture_is_begun(serve, numerics):
    from diffsynth.pipelines import qwen_image

    with ditserve.Client(serve(numerics=numerics).address) as client:
        for options, error, named in (({"profil": "disk"}, TypeError, "profil"),
                                      ({"profile": "disk", "vram_config": {}}, ValueError, "expected one of them"),
                                      ({"profile": "none"}, LookupError, "profile: expected one of .*disk.*; found 'none'")):
            with pytest.raises(error, match=named):
                if numerics == "diffusers":
                    RemoteTransformer(client, **options)
                else:
                    ditserve.diffsynth.attach(qwen_image.QwenImagePipeline(device="cpu"), client, **options)


def test_a_server_that_is_killed_ends_a_pipeline_in_mid_pass_and_between_passes(serve, numerics):
    server = serve(numerics=numerics)

    def kill() -> None:
        await_residency(server.address, lambda one: len(one.riders) == 2)
        server.process.kill()

    with ditserve.Client(server.address) as client:
        run = PIPELINES[numerics](client, side=2048, steps=50)  # Ended long before these are.
        killing = threading.Thread(target=kill)
        killing.start()
        with pytest.raises(ConnectionError):
            run()
        killing.join()
        with pytest.raises(ConnectionError):
            run()


def test_ctrl_c_in_a_pipeline_ends_both_passes(serve, numerics):
    server = serve(numerics=numerics)
    program = "import sys, ditserve, test_pipelines\n" \
              "test_pipelines.PIPELINES[sys.argv[1]](ditserve.Client(sys.argv[2]), side=2048, steps=50)()\n"
    environment = {**os.environ, "PYTHONPATH": ":".join(
        [str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ["PYTHONPATH"]])}
    process = subprocess.Popen([sys.executable, "-c", program, numerics, server.address], env=environment,
                               stderr=subprocess.PIPE, text=True)
    await_residency(server.address, lambda one: len(one.riders) == 2)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert "KeyboardInterrupt" in told
    await_residency(server.address, idle)


def test_a_pipeline_that_fails_on_its_own_leaves_nothing_under_way(serve):
    server = serve(numerics="diffusers")
    with ditserve.Client(server.address) as client:
        def fail(pipe, step, timestep, tensors):
            raise RuntimeError("a callback's own")

        with pytest.raises(RuntimeError, match="a callback's own"):
            diffusers_pipeline(client, callback_on_step_end=fail)()
        await_residency(server.address, idle)


@pytest.fixture
def transformer(serve):
    with ditserve.Client(serve(numerics="diffusers").address) as client:
        yield RemoteTransformer(client)


def call(transformer, **given):
    inputs = {"hidden_states": torch.zeros(1, 4, 64), "encoder_hidden_states": PROMPT, "timestep": torch.ones(1),
              "img_shapes": [[(1, 2, 2)]]}
    return transformer(**{**inputs, **given})


def test_a_transformers_answer_has_both_forms(transformer):
    assert torch.equal(call(transformer).sample + 0, call(transformer, return_dict=False)[0] + 0)


def test_passes_join_at_once_unless_the_drop_in_was_made_with_another_join(serve):
    asked = []
    with ditserve.Client(serve(numerics="diffusers").address) as client:
        begin = client.begin_forward
        client.begin_forward = lambda *inputs, **options: asked.append(options["join"]) or begin(*inputs, **options)
        for options in ({}, {"join": "auto"}, {"join": "wait"}):
            call(RemoteTransformer(client, **options)).sample + 0
    assert asked == ["immediate", "auto", "wait"]


@pytest.mark.parametrize(("given", "named"), [
    ({"guidance": torch.ones(1)}, "guidance"),
    ({"attention_kwargs": {"scale": 0.5}}, "attention_kwargs"),
    ({"controlnet_block_samples": [torch.zeros(1)]}, "controlnet_block_samples"),
    ({"additional_t_cond": torch.zeros(1)}, "additional_t_cond"),
    ({"timestep": None}, "timestep"),
    ({"img_shapes": None}, "img_shapes"),
    ({"img_shapes": [[(1, 2, 2), (1, 2, 2)]]}, "img_shapes"),
    ({"img_shapes": [[(1, 2, 2)], [(1, 4, 1)]]}, "img_shapes"),
    ({"img_shapes": [[(2, 2, 1)]]}, "img_shapes"),
])
def test_what_can_not_be_asked_of_a_remote_transformer_is_refused_by_name(transformer, given, named):
    with pytest.raises(ValueError, match=named):
        call(transformer, **given)


def test_the_layout_of_outputs_is_the_pipelines(serve):
    from diffsynth.pipelines import qwen_image

    with ditserve.Client(serve(numerics="diffusers").address) as client:
        with pytest.raises(ValueError, match="output_layout: is the pipeline's"):
            RemoteTransformer(client, output_layout="latents")
    with ditserve.Client(serve(numerics="diffsynth").address) as client:
        with pytest.raises(ValueError, match="output_layout: is the pipeline's"):
            ditserve.diffsynth.attach(qwen_image.QwenImagePipeline(device="cpu"), client, output_layout="patches")


def test_what_a_remote_transformer_has_not_is_named(transformer):
    for name in ("load_lora_adapter", "state_dict", "enable_cache", "set_attention_backend", "parameters"):
        with pytest.raises(AttributeError, match=f"no '{name}': its weights are the server's"):
            getattr(transformer, name)
    assert transformer.config.in_channels == 64
    assert transformer.config.num_layers == 1


def test_what_can_not_be_asked_of_a_diffsynth_pipeline_is_refused_by_name(serve):
    with ditserve.Client(serve(numerics="diffsynth").address) as client:
        for given, named in (({"zero_cond_t": True}, "zero_cond_t"), ({"edit_rope_interpolation": True}, "edit_rope"),
                             ({"layer_num": 0}, "layer_num"), ({"kv_cache": {}}, "kv_cache")):
            with pytest.raises(ValueError, match=f"{named}.*: can't be done remotely"):
                diffsynth_pipeline(client, **given)()


def test_a_lora_of_a_remote_dit_is_refused_and_of_others_not(serve):
    from diffsynth.pipelines import qwen_image

    with ditserve.Client(serve(numerics="diffsynth").address) as client:
        pipe = ditserve.diffsynth.attach(qwen_image.QwenImagePipeline(device="cpu"), client)
        with pytest.raises(ValueError, match="load_lora: can't be done remotely"):
            pipe.load_lora(pipe.dit, "lora.safetensors")
        pipe.load_lora(torch.nn.Linear(2, 2), state_dict={})
        with pytest.raises(AttributeError, match="no 'transformer_blocks': its weights are the server's"):
            pipe.dit.transformer_blocks
        with pytest.raises(ValueError, match="load_state_dict: can't be done remotely"):
            pipe.dit.load_state_dict({"a": torch.zeros(1)}, strict=False)


@pytest.mark.parametrize("told", [{}, {
    "offload_dtype": "disk", "offload_device": "disk", "onload_dtype": "disk", "onload_device": "disk",
    "preparing_dtype": torch.float32, "preparing_device": "accelerator"}])
def test_a_model_config_that_leaves_the_computation_to_the_pipeline_is_taken(serve, told):
    from diffsynth.core.loader import ModelConfig

    with ditserve.Client(serve(numerics="diffsynth").address) as client:
        held = {"vram_config": ModelConfig(path="x", **told).vram_config()}
        assert torch.isfinite(diffsynth_pipeline(client, held=held)()).all()


def test_what_a_later_diffsynth_asks_of_its_model_is_refused_by_name(fake):
    class Pipeline:
        torch_dtype = torch.float32

        def load_lora(self):
            pass

        @staticmethod
        def model_fn(dit=None, latents=None, timestep=None, prompt_emb=None, prompt_emb_mask=None, later=1.0, **kwargs):
            pass

    inputs = {"latents": torch.zeros(1, 16, 4, 4), "timestep": torch.tensor([500.0]), "prompt_emb": PROMPT,
              "prompt_emb_mask": torch.ones(1, 5, dtype=torch.int64), "cfg_scale": 4.0}
    fake.answers = [_api.v1("ListModelsResponse")(
        models=[{"state": 2, "name": "tiny", "numerics": _api.number("Numerics", "diffsynth")}]).SerializeToString()]
    with ditserve.Client(fake.address) as client:
        pipe = Pipeline()
        for _ in range(2):  # A pipeline may be attached again.
            ditserve.diffsynth.attach(pipe, client)
            for given in ({}, {"later": 1.0}, {"later": None}):
                assert pipe.model_fn(**inputs, **given).shape == (1, 16, 4, 4)
            for given in (0.5, torch.zeros(1)):
                with pytest.raises(ValueError, match="later: can't be done remotely"):
                    pipe.model_fn(**inputs, later=given)
        pipe.model_fn = lambda **inputs: None  # Somebody's wrapper, of which nothing can be told.
        ditserve.diffsynth.attach(pipe, client)
        with pytest.raises(ValueError, match="edit_latents: can't be done remotely"):
            pipe.model_fn(**inputs, edit_latents=torch.zeros(1))


def test_the_branches_of_every_step_ride_together(serve, numerics):
    """The second comes when the first has passed a module: `join: auto` would let it wait where computing is the limit."""
    server = serve(numerics=numerics)
    with ditserve.Client(server.address) as client:
        both = []
        begin = client.begin_forward

        def begun(residency):
            return any(rider.modules_done > 0 for rider in residency.riders)

        def begin_late(*inputs, **options):
            both.append(pending := begin(*inputs, **options))
            send = pending.send

            def send_late(beside=""):
                if pending._sent is None:
                    await_residency(server.address, begun if beside else idle)
                return send(beside=beside)

            pending.send = send_late
            return pending

        client.begin_forward = begin_late
        PIPELINES[numerics](client, side=3072)()
        riders = [one.result().stats.riders for one in both]
    assert riders == [2] * 4
