"""Which of several servers a call goes to, and what becomes of it when that one fails. No connection is needed for it."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal

from .errors import DitserveError, Unavailable
from .reports import Residency

Balance = Literal["least_waiting", "round_robin"]

FIGURES_SECONDS = 1.0  # How long a server's figures are believed, and waited for.
SILENT_SECONDS = 10.0  # How long one that told none is left alone: each time that it is asked, a call waits for it.


class Servers:
    """Chooses among servers, by turns or by who has the least to do.

    "least_waiting" takes the server that predicts the shortest wait, of equals the one with the fewest requests: its own
    figures, not older than a second, and what was sent to it since, of which each adds a request and its share of the
    wait. A server that tells none comes last.

    Thread safety: thread-safe.
    """

    def __init__(self, addresses: Sequence[str], balance: Balance, clock: Callable[[], float] = time.monotonic) -> None:
        if not addresses:
            raise ValueError("address: expected one at least")
        if balance not in ("least_waiting", "round_robin"):
            raise ValueError(f"balance: expected least_waiting or round_robin; found {balance!r}")
        self.addresses = tuple(dict.fromkeys(addresses))
        self._by_figures = balance == "least_waiting" and len(self.addresses) > 1
        self._clock = clock
        self._lock = threading.Lock()
        self._turn = 0
        self._ask_at = dict.fromkeys(self.addresses, 0.0)
        self._figures = dict.fromkeys(self.addresses, _figures(None))
        self._sent = dict.fromkeys(self.addresses, 0)

    def claim_asking(self) -> list[str]:
        """Whom the caller is to ask for figures now: nobody else will for a second."""
        with self._lock:
            now = self._clock()
            claimed = [address for address in self.addresses if self._by_figures and self._ask_at[address] <= now]
            self._ask_at.update(dict.fromkeys(claimed, now + FIGURES_SECONDS))
            return claimed

    def tell(self, address: str, residency: Residency | None) -> None:
        """A server's figures; None where it did not tell them."""
        with self._lock:
            self._figures[address] = _figures(residency)
            self._sent[address] = 0
            if residency is None:
                self._ask_at[address] = self._clock() + SILENT_SECONDS

    def choose(self, without: set[str], preferred: str = "") -> str:
        """One that is not in `without`, if there is one."""
        with self._lock:
            chosen = preferred or self._best(without)
            self._sent[chosen] += 1
            return chosen

    def _best(self, without: set[str]) -> str:
        first, self._turn = self._turn, (self._turn + 1) % len(self.addresses)
        in_turn = self.addresses[first:] + self.addresses[:first]
        candidates = [address for address in in_turn if address not in without] or in_turn
        return min(candidates, key=self._load) if self._by_figures else candidates[0]

    def _load(self, address: str) -> tuple[float, int]:
        wait, requests = self._figures[address]
        sent = self._sent[address]
        return wait * (1 + sent / max(requests, 1)), requests + sent


def _figures(residency: Residency | None) -> tuple[float, int]:
    if residency is None:
        return float("inf"), 0
    return residency.predicted_wait, residency.requests_waiting + len(residency.riders)


class Attempts:
    """The tries of one call: elsewhere at once where a server is full or gone, later where it said when.

    Every call of ours may be made twice: a pass has no effect but its answer. preferred: the server of the first try.
    """

    def __init__(
        self,
        servers: Servers,
        retries: int,
        timeout: float | None,
        preferred: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._servers, self._retries, self._preferred, self._clock = servers, retries, preferred, clock
        self._deadline = None if timeout is None else clock() + timeout
        self._failed: set[str] = set()  # Of this round over the servers.
        self._hint = math.inf  # The least of this round.
        self._soonest: DitserveError | None = None  # The error that has it.
        self.address = ""

    def next_address(self) -> str:
        self.address = self._servers.choose(self._failed, self._preferred)
        self._preferred = ""
        return self.address

    def seconds_left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - self._clock())

    def patience(self) -> float:
        """Seconds that servers have to tell their figures. Half the time is the call's own."""
        left = self.seconds_left()
        return FIGURES_SECONDS if left is None else min(FIGURES_SECONDS, left / 2)

    def wait_after(self, error: DitserveError) -> float:
        """Seconds until the next try.

        Errors: where there is none, `error`, or the one with the least hint where all servers have failed.
        """
        hint = error.retry_after
        if hint is None and not isinstance(error, Unavailable):
            raise error
        self._failed.add(self.address)
        if hint is not None and hint < self._hint:
            self._hint, self._soonest = hint, error
        if len(self._failed) < len(self._servers.addresses):
            return 0.0
        if self._soonest is None or self._retries <= 0:
            raise self._soonest or error
        # Those that were refused together do not come back together.
        wait = self._hint * random.uniform(1, 1.5)
        left = self.seconds_left()
        if left is not None and wait >= left:
            raise self._soonest
        self._retries -= 1
        self._failed.clear()
        self._hint, self._soonest = math.inf, None
        return wait
