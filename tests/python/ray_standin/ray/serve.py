"""A stand-in for Ray Serve, with the interface of Ray 2.10 and later: what is bound here is deployed by a test."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple


class Application(NamedTuple):
    func_or_class: type
    arguments: tuple[Any, ...]

    def deploy(self) -> Any:
        """A replica."""
        return self.func_or_class(*self.arguments)


class Deployment(NamedTuple):
    func_or_class: type

    def bind(self, *arguments: Any) -> Application:
        return Application(self.func_or_class, arguments)


def deployment(*, num_replicas: int, max_ongoing_requests: int) -> Callable[[type], Deployment]:
    assert num_replicas > 1
    assert max_ongoing_requests == 1  # A pipeline makes one picture at a time.
    return Deployment


def build(builder: Callable[[dict[str, str]], Application], arguments: dict[str, str]) -> Application:
    """What `serve run` makes of a function and the arguments after it.

    Ray asks whether the only parameter's annotation is a pydantic model, by issubclass: which `dict[str, str]` fails in on
    Python 3.10, where it passes for a class.
    """
    (parameter,) = inspect.signature(builder).parameters.values()
    assert type(parameter.annotation) is type
    application = builder(arguments)
    assert isinstance(application, Application)
    return application
