"""The client for code that waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from . import _requests, reports
from ._calls import Pending, Run, Session, Stream
from ._configured import Configured
from ._requests import Call, DenoiseOptions, ForwardOptions, PlanOptions, Prompt
from ._tensors import Array, ArrayT, Number

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

T = TypeVar("T")


class Client(Configured[Session]):
    """Calls a ditserve, or several that serve the same model.

    address: host:port or unix:/path; several: every call goes to one of them, chosen by `balance`, and elsewhere where
        that one is full or gone.
    token: the server's bearer token, or a function that gives it, asked before each call.
    tls: True believes the authorities that this machine does.
    retries: how often a call is sent again that every server refused with a hint when to come back, after that time.
    timeout: seconds for a call that names none, all tries together; None: as long as it takes.
    balance: "least_waiting", by the servers' own figures, or "round_robin".

    Ownership: closing it cancels what is under way.
    Thread safety: thread-safe.
    Errors: every call raises a DitserveError (`errors`); TypeError or ValueError where it can't be sent. An exception that
    comes while a call is waited for, such as KeyboardInterrupt, cancels it.
    """

    _make_session = Session

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancels what is under way."""
        self._session.close()

    def forward(
        self,
        latents: ArrayT,
        timestep: Number | Array,
        prompt_emb: Array,
        prompt_emb_mask: Array | None = None,
        **options: Unpack[ForwardOptions],
    ) -> reports.Forward[ArrayT]:
        """One forward pass of the transformer.

        latents: [B, 16, H/8, W/8]; float32, bfloat16 or float16; H and W are multiples of 16 pixels.
        timestep: [B], or one number for all, numpy's and torch's too: what the model's forward takes, a pipeline's / 1000.
        prompt_emb: [B, T, 3584], 1 <= T <= 1024.
        prompt_emb_mask: [B, T], nonzero where a token counts.
        options: see ForwardOptions.
        Returns an array of the latents' dtype and kind; one of torch is on their device.
        """
        return self.begin_forward(latents, timestep, prompt_emb, prompt_emb_mask, **options).result()

    def begin_forward(
        self,
        latents: ArrayT,
        timestep: Number | Array,
        prompt_emb: Array,
        prompt_emb_mask: Array | None = None,
        *,
        at_once: bool = True,
        **options: Unpack[ForwardOptions],
    ) -> Pending[reports.Forward[ArrayT]]:
        """`forward`, begun: several at a time ride one sweep. at_once: if not, it is sent when it is told or waited for."""
        timeout = options.pop("timeout", self._timeout)
        call = _requests.forward(latents, timestep, prompt_emb, prompt_emb_mask, **options)
        pending = Pending(self._session, call, timeout)
        return pending.send() if at_once else pending

    def forward_stream(
        self,
        latents: ArrayT,
        timestep: Number | Array,
        prompt_emb: Array,
        prompt_emb_mask: Array | None = None,
        **options: Unpack[ForwardOptions],
    ) -> Run[reports.ForwardProgress, reports.Forward[ArrayT]]:
        """`forward`, with its progress."""
        timeout = options.pop("timeout", self._timeout)
        call = _requests.forward_stream(latents, timestep, prompt_emb, prompt_emb_mask, **options)
        return Run(Stream(self._session, call, timeout).send(), lambda event: isinstance(event, reports.Forward))

    def denoise(
        self,
        prompt: Prompt | Array,
        negative_prompt: Prompt | Array | None = None,
        *,
        height: int,
        width: int,
        **options: Unpack[DenoiseOptions],
    ) -> Run[reports.DenoiseProgress[Any], reports.Denoised[Any]]:
        """A whole denoising loop: what a pipeline does between its text encoder and its VAE.

        prompt, negative_prompt: embeddings [B, T, 3584], or a Prompt of them and a mask; each has its own T.
        height, width: pixels, multiples of 16.
        options: see DenoiseOptions; `seeds` or `latents` is needed.
        The latents of progress and result are of the prompt's kind.
        """
        timeout = options.pop("timeout", self._timeout)
        call = _requests.denoise(prompt, negative_prompt, height=height, width=width, **options)
        return Run(Stream(self._session, call, timeout).send(), lambda event: isinstance(event, reports.Denoised))

    def plan(
        self,
        height: int,
        width: int,
        *,
        prompt_tokens: int,
        batch: int = 1,
        riders: int = 1,
        known_timestep: bool = False,
        **options: Unpack[PlanOptions],
    ) -> reports.Plan:
        """What `riders` such passes that come together would take, without running them.

        height, width: pixels, multiples of 16. prompt_tokens: of each prompt, that count. known_timestep: at timesteps
        whose modulation is kept, as of each step of a loop but the first. options: see PlanOptions.
        """
        timeout = options.pop("timeout", self._timeout)
        call = _requests.plan(height, width, prompt_tokens, batch, riders, known_timestep, **options)
        return Pending(self._session, call, timeout).result()

    def models(self) -> list[reports.Model]:
        """The loaded models."""
        return self._ask(_requests.models())

    def model(self, name: str = "") -> reports.ModelTree:
        """One model's tree and modules; the server's only one if no name is given."""
        return self._ask(_requests.model(name))

    def profiles(self) -> reports.Profiles:
        """The configured profiles, and which one is the default."""
        return self._ask(_requests.profiles())

    def residency(self) -> reports.Residency:
        """Where every byte is."""
        return self._ask(_requests.residency())

    def watch(self, interval: float = 1.0) -> Stream[reports.Residency]:
        """`residency` at once and then every `interval` seconds, 0.1 to 60, until it is cancelled."""
        return Stream(self._session, _requests.watch(interval), None).send()

    def _ask(self, call: Call[T]) -> T:
        return Pending(self._session, call, self._timeout).result()
