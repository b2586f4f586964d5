"""Progress as a tqdm bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .reports import DenoiseProgress, ForwardProgress


@contextmanager
def progress_bar(shown: bool) -> Iterator[Callable[[Any], None]]:
    """Gives what shows a progress: modules of all and, of a loop, its step.

    Errors: ImportError where a bar is wanted and tqdm is missing.
    """
    if not shown:
        yield lambda _: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise ImportError("a bar needs tqdm: pip install ditserve[progress]") from None

    with tqdm(unit="module") as bar:

        def show(progress: Any) -> None:
            bar.total = progress.modules_total
            bar.set_description(_stage(progress), refresh=False)
            bar.update(progress.modules_done - bar.n)

        yield show
        bar.update((bar.total or 0) - bar.n)


def _stage(progress: ForwardProgress | DenoiseProgress[Any]) -> str:
    if isinstance(progress, ForwardProgress):
        return progress.stage
    return f"step {min(progress.steps_done + 1, progress.steps)}/{progress.steps}"
