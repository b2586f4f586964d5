"""Which of the servers' models a pipeline is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from . import _requests
from ._calls import Pending
from ._requests import Call
from .client import Client
from .errors import DeadlineExceeded, DitserveError, NotFound, ResourceExhausted, Unavailable
from .reports import Model

T = TypeVar("T")
# What a server tells of a model that is not of the moment. Other weights in the same shapes are not seen by it.
_ALIKE = ("name", "type", "blocks", "parameters", "stored_bytes", "numerics")


def served_model(client: Client, options: Mapping[str, Any], numerics: str) -> Model:
    """The model that passes with these options are of: of that name, or the only one, and alike at every server.

    Of several servers those that are gone, silent, full or loading now are passed over, where another answers.

    Errors: Unavailable where the model is loading; NotFound where a server has no such model or profile; ValueError where
    its model's arithmetic is another than the pipeline's, or its model another than the first one's.
    """
    told = _ask_each(client, _requests.models())
    models = _loaded({address: _of_name(each, options.get("model", ""), address) for address, each in told.items()})
    for address, model in models.items():
        if model.numerics != numerics:
            expected = f"expected `numerics: {numerics}`; the server has {model.numerics}'s"
            raise ValueError(f"{address}: model {model.name!r}: {expected}")
    if profile := options.get("profile", ""):
        _require_profile(client, profile)
    return _the_same(models)


def _ask_each(client: Client, call: Call[T]) -> dict[str, T]:
    """What each server answers, by its address."""
    session = client._session
    asked = {address: Pending(session, call, client._timeout).send(only=address) for address in session.addresses}
    answers: dict[str, T] = {}
    missed: list[DitserveError] = []
    for address, pending in asked.items():
        try:
            answers[address] = pending.result()
        except (DeadlineExceeded, ResourceExhausted, Unavailable) as error:
            missed.append(error)
    if not answers:
        raise missed[0]
    return answers


def _of_name(models: Sequence[Model], name: str, address: str) -> Model:
    found = [model for model in models if model.name == name or (not name and len(models) == 1)]
    if not found:
        names = ", ".join(model.name for model in models)
        raise NotFound(f"{address}: model: expected one of {names}; found {name!r}", field="model")
    return found[0]


def _loaded(models: Mapping[str, Model]) -> dict[str, Model]:
    """Of one that loads still no more than the name is known."""
    loaded = {address: model for address, model in models.items() if model.state == "ready"}
    if not loaded:
        (address, model), *_ = models.items()
        raise Unavailable(f"{address}: model: {model.name!r} is loading", field="model")
    return loaded


def _require_profile(client: Client, profile: str) -> None:
    for address, told in _ask_each(client, _requests.profiles()).items():
        names = [one.name for one in told.profiles]
        if profile not in names:
            raise NotFound(f"{address}: profile: expected one of {', '.join(names)}; found {profile!r}", field="profile")


def _the_same(models: Mapping[str, Model]) -> Model:
    (first, expected), *others = models.items()
    for address, model in others:
        for name in _ALIKE:
            there, here = getattr(expected, name), getattr(model, name)
            if here != there:
                raise ValueError(f"{address}: the model's {name}: expected {there!r}, as {first} has it; found {here!r}")
    return expected
