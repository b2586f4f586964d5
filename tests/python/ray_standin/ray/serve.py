"""A stand-in for Ray Serve: what is bound here is deployed by a test."""

from __future__ import annotations

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
