"""A server in the place of a transformer of diffusers (0.42)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from ._deferred import Passes
from ._models import served_model
from .client import Client

Shapes = Sequence[Sequence[tuple[int, int, int]]]


class RemoteTransformer:
    """Computes what a QwenImagePipeline, Img2Img or Inpaint asks of its transformer at a server.

        pipe = QwenImagePipeline.from_pretrained("Qwen/Qwen-Image", transformer=None)
        pipe.transformer = RemoteTransformer(Client("gpu1:50051"), profile="disk")

    Text encoder, VAE and scheduler stay where they are. The two branches of guidance ride one sweep: a call gives a tensor
    that waits for its pass when it is used. options: how the weights are held and so on, as Client.forward has them.

    Thread safety: of one pipeline at a time; several may share a client.
    Errors: NotFound where a server has no such model or profile; ValueError where it has other numerics than diffusers', or
    several have other models; TypeError or ValueError for options that a pass can't have; ValueError for whatever of a call
    can't be done remotely, by name; AttributeError for other things that a transformer has.
    """

    def __init__(self, client: Client, **options: Any) -> None:
        self._passes = Passes(client, options)
        model = served_model(client, options, "diffusers")
        self.config = FrozenDict(
            patch_size=2,
            in_channels=64,
            out_channels=16,
            num_layers=model.blocks,
            joint_attention_dim=3584,
            guidance_embeds=False,
        )

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"a remote transformer has no {name!r}: its weights are the server's")

    @contextmanager
    def cache_context(self, _name: str) -> Iterator[None]:
        """Pipelines tell the branch of guidance; nothing is kept between calls of one."""
        yield

    def __call__(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_hidden_states_mask: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,
        img_shapes: Shapes | None = None,
        guidance: torch.Tensor | None = None,
        attention_kwargs: Mapping[str, Any] | None = None,
        controlnet_block_samples: Any = None,
        additional_t_cond: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """QwenImageTransformer2DModel.forward.

        hidden_states: [B, H/16 * W/16, 64]; encoder_hidden_states: [B, T, 3584]; timestep: [B], 0 to 1.
        """
        refused = {
            "guidance": guidance is not None,
            "attention_kwargs": bool(attention_kwargs),
            "controlnet_block_samples": controlnet_block_samples is not None,
            "additional_t_cond": additional_t_cond is not None,
        }
        for name, given in refused.items():
            if given:
                raise ValueError(f"{name}: can't be done remotely")
        if timestep is None:
            raise ValueError("timestep: is missing")
        latents = _unpack(hidden_states, *_rows_and_columns(img_shapes))
        output = self._passes.begin(
            latents, timestep, encoder_hidden_states, encoder_hidden_states_mask, hidden_states.shape
        )
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)


def _rows_and_columns(img_shapes: Shapes | None) -> tuple[int, int]:
    """Of patches. Errors: ValueError where it is not one image, of the same size in the whole batch."""
    shapes = {tuple(tuple(image) for image in images) for images in img_shapes or ()}
    if len(shapes) != 1 or len(only := shapes.pop()) != 1 or only[0][0] != 1:
        raise ValueError(f"img_shapes: expected one image, of one size in the whole batch; found {img_shapes}")
    _, rows, columns = only[0]
    return rows, columns


def _unpack(patches: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """[B, h * w, 64] to [B, 16, 2h, 2w], the reverse of the pipelines' _pack_latents."""
    batch, _, channels = patches.shape
    tiles = patches.reshape(batch, rows, columns, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return tiles.reshape(batch, channels // 4, rows * 2, columns * 2)
