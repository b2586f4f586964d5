"""Tensors that a server is still computing."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from . import _requests
from ._calls import Pending
from .client import Client
from .reports import Forward


class DeferredTensor(torch.Tensor):
    """The output of a pass that may be under way. Any operation on it waits for the pass and gives plain tensors.

    Pipelines ask for the two branches of guidance one after the other and use neither before they have asked for both. So
    nothing is sent until something is used; then all that was asked for is, and rides one sweep. (torch.distributed's
    AsyncCollectiveTensor lets collectives overlap in the same way.)

    Errors: those of the pass come from the operation that waits for it.
    """

    _passes: Passes
    _pending: Pending[Forward[torch.Tensor]] | None  # Until its value is there: it holds the request and the answer.
    _value: torch.Tensor

    @staticmethod
    def __new__(cls, shape: torch.Size, like: torch.Tensor, passes: Passes, pending: Pending[Any]) -> DeferredTensor:
        made: DeferredTensor = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=like.dtype, device=like.device)
        made._passes, made._pending = passes, pending
        return made

    def wait(self) -> torch.Tensor:
        """The tensor itself."""
        if self._pending is not None:
            self._value = self._passes.wait(self._pending)
            self._pending = None
        return self._value

    @classmethod
    def __torch_function__(cls, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "__get__":  # Its shape and dtype are known.
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        return cls.__torch_dispatch__(func, _types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(cls, cls.wait, (args, kwargs or {}))
        return func(*args, **kwargs)


class Passes:
    """The passes of one pipeline: what is under way together goes to one server, and ends together.

    Thread safety: of one thread.
    """

    def __init__(self, client: Client, options: dict[str, Any]) -> None:
        if "output_layout" in options:
            raise ValueError("output_layout: is the pipeline's, and can't be chosen")
        _requests.require_options(options)
        # A step has ended when both of its branches have: for one to wait for the other's sweep gains nothing.
        self._client, self._options = client, {"join": "immediate", **options}
        self._asked_for: weakref.WeakSet[Pending[Any]] = weakref.WeakSet()

    def begin(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        prompt_emb: torch.Tensor,
        mask: torch.Tensor | None,
        shape: torch.Size,
        **options: Any,
    ) -> torch.Tensor:
        """`shape` is the output's. The arguments are Client.forward's."""
        # The request is made now: the pipeline may write into its tensors before it uses the output.
        try:
            pending = self._client.begin_forward(
                latents, timestep, prompt_emb, mask, at_once=False, **self._options, **options
            )
        except BaseException:
            self._end()
            raise
        self._asked_for.add(pending)
        return DeferredTensor(shape, latents, self, pending)

    def wait(self, pending: Pending[Forward[torch.Tensor]]) -> torch.Tensor:
        try:
            pending.send()
            for other in list(self._asked_for):
                other.send(beside=pending.address)
            output = pending.result().output
        except BaseException:
            self._end()
            raise
        self._asked_for.discard(pending)
        return output

    def _end(self) -> None:
        """The picture is lost: nobody will wait for the others."""
        for other in list(self._asked_for):
            other.cancel()
        self._asked_for.clear()
