"""A stand-in for ComfyUI's module of this name: Qwen-Image's configuration, and the model around a diffusion model.

The model is a flow: what the diffusion model gives, times sigma, is taken off. What it hands on has the inference dtype.
"""

import torch


class QwenImage:
    def __init__(self, unet_config):
        self.unet_config, self.manual_cast_dtype = unet_config, None

    def set_inference_dtype(self, dtype, manual_cast_dtype):
        self.unet_config["dtype"], self.manual_cast_dtype = dtype, manual_cast_dtype

    def get_model(self, state_dict, prefix="", device=None):
        assert self.unet_config["disable_unet_model_creation"] and self.unet_config["image_model"] == "qwen_image"
        return Model()


class Model(torch.nn.Module):
    def apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **conditions):
        dtype = self.diffusion_model.dtype
        output = self.diffusion_model(x.to(dtype), t.float(), context=c_crossattn.to(dtype), control=control,
                                      transformer_options=transformer_options.copy(), **conditions)
        return x - output.float() * t.view(-1, 1, 1, 1, 1)
