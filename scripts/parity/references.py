"""Runs a case through DiffSynth-Studio's and diffusers' own code."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from cases import Case


class References:
    """Both implementations with the weights of one checkpoint folder, one at a time in memory."""

    def __init__(self, checkpoint: Path):
        self.checkpoint = checkpoint
        self.blocks = json.loads((checkpoint / "config.json").read_text())["num_layers"]

    def _weights(self, dtype: torch.dtype, through: torch.dtype) -> dict[str, torch.Tensor]:
        weights = {}
        for shard in sorted(self.checkpoint.glob("*.safetensors")):
            weights |= {name: tensor.to(through).to(dtype) for name, tensor in load_file(shard).items()}
        return weights

    def load_float8(self) -> "Reference":
        """DiffSynth-Studio with `computation_dtype: float8_e4m3fn`, on activations in bfloat16.

        Of Linear alone: with a norm's weights in float8 it fails ("Promotion for Float8 Types is not supported").
        """
        from diffsynth.core.vram.layers import AutoWrappedLinear, enable_vram_management

        reference = self.load("diffsynth", torch.bfloat16)
        states = ("offload", "onload", "preparing", "computation")
        config = {f"{state}_dtype": torch.bfloat16 for state in states} | {f"{state}_device": "cpu" for state in states}
        config["computation_dtype"] = torch.float8_e4m3fn
        map_of_modules = {torch.nn.Linear: AutoWrappedLinear}
        reference.model = enable_vram_management(reference.model, map_of_modules, vram_config=config)
        return reference

    def load(self, numerics: str, dtype: torch.dtype, through: torch.dtype = torch.bfloat16,
             device: str = "cpu") -> "Reference":
        """`through`: what weights, which are stored in bfloat16, are rounded to before."""
        if numerics == "diffsynth":
            from diffsynth.models.qwen_image_dit import QwenImageDiT

            with torch.device("meta"):
                model = QwenImageDiT(num_layers=self.blocks)
            # Not a parameter, so it must not stay on the meta device.
            model.pos_embed = type(model.pos_embed)(theta=10000, axes_dim=[16, 56, 56], scale_rope=True)
        else:
            from diffusers import QwenImageTransformer2DModel

            config = QwenImageTransformer2DModel.load_config(str(self.checkpoint))
            with torch.device("meta"):
                model = QwenImageTransformer2DModel.from_config(config)
            model.pos_embed = type(model.pos_embed)(theta=10000, axes_dim=[16, 56, 56], scale_rope=True)
        model.load_state_dict(self._weights(dtype, through), strict=True, assign=True)
        return Reference(numerics, model.eval().to(device), dtype, device)


class Reference:
    def __init__(self, numerics: str, model: torch.nn.Module, dtype: torch.dtype, device: str):
        self.numerics, self.model, self.dtype, self.device = numerics, model, dtype, device

    @torch.no_grad()
    def run(self, case: Case) -> torch.Tensor:
        """The packed output [B, H/16 * W/16, 64], float32."""
        latents = torch.from_numpy(case.latents()).to(self.device, self.dtype)
        prompt = torch.from_numpy(case.prompt_emb()).to(self.device, self.dtype)
        mask = torch.from_numpy(case.mask()).to(self.device)
        timestep = torch.full((len(case.lengths),), case.timestep, dtype=self.dtype, device=self.device)
        if self.numerics == "diffsynth":
            # Its forward is right for one item without padding, so each runs by itself.
            outputs = [
                self.model(
                    latents=latents[i : i + 1],
                    timestep=timestep[i : i + 1],
                    prompt_emb=prompt[i : i + 1, :length],
                    prompt_emb_mask=mask[i : i + 1, :length],
                    height=case.height,
                    width=case.width,
                )
                for i, length in enumerate(case.lengths)
            ]
            return torch.cat(outputs).float().cpu()
        batch, channels, rows, columns = latents.shape
        patches = latents.view(batch, channels, rows // 2, 2, columns // 2, 2).permute(0, 2, 4, 1, 3, 5)
        patches = patches.reshape(batch, rows * columns // 4, channels * 4)
        return self.model(
            hidden_states=patches,
            encoder_hidden_states=prompt,
            encoder_hidden_states_mask=None if bool(mask.all()) else mask,
            timestep=timestep,
            img_shapes=[[(1, rows // 2, columns // 2)]] * batch,
            return_dict=False,
        )[0].float().cpu()


def runs(case: Case, numerics: str) -> bool:
    """DiffSynth-Studio takes the mask for lengths only, so it has no answer where there are holes."""
    return numerics == "diffusers" or not case.hole
