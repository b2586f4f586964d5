"""Which server a call goes to, and when it is sent again."""

from __future__ import annotations

import pytest

from ditserve._servers import SILENT_SECONDS, Attempts, Servers
from ditserve.errors import InvalidArgument, ResourceExhausted, Unavailable
from ditserve.reports import Residency, Rider


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def residency(wait: float = 0, riders: int = 0, waiting: int = 0) -> Residency:
    rider = Rider("m", "disk", 0, 1, "interactive", False, 0.0, "cpu")
    return Residency([], [], [rider] * riders, waiting, [], wait)


def test_round_robin_takes_turns_and_passes_over_who_failed():
    servers = Servers(["a", "b", "c"], "round_robin")
    assert [servers.choose(set()) for _ in range(4)] == ["a", "b", "c", "a"]
    assert servers.choose({"b"}) == "c"
    assert servers.choose({"a", "b", "c"}) in "abc"
    assert not servers.claim_asking()


def test_least_waiting_takes_who_has_the_least_to_do():
    clock = Clock()
    servers = Servers(["a", "b", "c"], "least_waiting", clock)
    assert servers.claim_asking()
    servers.tell("a", residency(wait=2))
    servers.tell("b", residency(riders=1, waiting=1))
    servers.tell("c", residency(riders=1))
    # What was sent counts until the server tells of it.
    assert [servers.choose(set()) for _ in range(3)] in (["c", "b", "c"], ["c", "c", "b"])
    servers.tell("b", None)
    servers.tell("c", None)
    assert servers.choose(set()) == "a"
    assert servers.choose({"a"}) in "bc"


def test_figures_are_asked_for_once_a_second_and_of_one_server_never():
    clock = Clock()
    servers = Servers(["a", "b"], "least_waiting", clock)
    assert servers.claim_asking() == ["a", "b"]
    assert servers.claim_asking() == []
    clock.now += 1
    assert servers.claim_asking() == ["a", "b"]
    assert Servers(["a", "a"], "least_waiting", clock).claim_asking() == []


def test_a_server_that_told_nothing_is_not_asked_again_for_some_seconds():
    clock = Clock()
    servers = Servers(["a", "b"], "least_waiting", clock)
    servers.claim_asking()
    servers.tell("a", residency())
    servers.tell("b", None)
    clock.now += SILENT_SECONDS - 1
    assert servers.claim_asking() == ["a"]
    clock.now += 1
    assert servers.claim_asking() == ["a", "b"]


def test_of_two_servers_that_are_alike_one_does_not_get_all_that_comes_in_a_second():
    servers = Servers(["a", "b"], "least_waiting")
    servers.tell("a", residency(wait=3.0, waiting=50))
    servers.tell("b", residency(wait=3.1, waiting=50))
    chosen = [servers.choose(set()) for _ in range(200)]
    assert 90 < chosen.count("a") < 110


def test_what_is_sent_weighs_as_much_as_what_waits_already():
    servers = Servers(["a", "b"], "least_waiting")
    servers.tell("a", residency(wait=1.0, waiting=10))
    servers.tell("b", residency(wait=1.95, waiting=1))
    assert [servers.choose(set()) for _ in range(11)] == ["a"] * 10 + ["b"]


def test_the_first_try_goes_where_it_is_told():
    servers = Servers(["a", "b"], "round_robin")
    attempts = Attempts(servers, 0, None, preferred="b")
    assert attempts.next_address() == "b"
    assert attempts.wait_after(Unavailable("gone")) == 0
    assert attempts.next_address() == "a"


def test_who_is_full_is_asked_again_after_its_hint_when_all_were():
    attempts = Attempts(Servers(["a", "b"], "round_robin"), 1, None)
    full = ResourceExhausted("full", retry_after=2.0)
    attempts.next_address()
    assert attempts.wait_after(full) == 0
    attempts.next_address()
    assert 2 <= attempts.wait_after(full) <= 3
    attempts.next_address()
    assert attempts.wait_after(full) == 0
    attempts.next_address()
    with pytest.raises(ResourceExhausted):  # It was to be tried again once.
        attempts.wait_after(full)


FULL, GONE = ResourceExhausted("full", retry_after=1.0), Unavailable("gone")


@pytest.mark.parametrize("failures", [
    [FULL, GONE], [GONE, FULL], [FULL, ResourceExhausted("full", retry_after=60.0)],
    [ResourceExhausted("full", retry_after=60.0), FULL], [Unavailable("loading", retry_after=60.0), FULL]])
def test_when_all_have_failed_the_least_hint_is_waited_for(failures):
    attempts = Attempts(Servers(["a", "b"], "round_robin"), 1, None)
    attempts.next_address()
    assert attempts.wait_after(failures[0]) == 0
    attempts.next_address()
    assert 1 <= attempts.wait_after(failures[1]) <= 1.5
    attempts.next_address()
    assert attempts.wait_after(failures[0]) == 0
    attempts.next_address()
    with pytest.raises(ResourceExhausted) as raised:  # It was to be tried again once.
        attempts.wait_after(failures[1])
    assert raised.value is FULL


def test_a_hint_of_an_earlier_round_is_forgotten():
    attempts = Attempts(Servers(["a", "b"], "round_robin"), 5, None)
    for error in (FULL, GONE, GONE):
        attempts.next_address()
        attempts.wait_after(error)
    attempts.next_address()
    with pytest.raises(Unavailable):
        attempts.wait_after(GONE)


def test_asking_for_figures_leaves_half_the_time_to_the_call():
    servers = Servers(["a"], "round_robin")
    assert [Attempts(servers, 0, timeout, clock=Clock()).patience() for timeout in (None, 60, 0.5)] == [1.0, 1.0, 0.25]


def test_no_try_is_waited_for_that_would_come_too_late():
    clock = Clock()
    attempts = Attempts(Servers(["a"], "round_robin"), 5, 3.0, clock=clock)
    attempts.next_address()
    assert attempts.seconds_left() == 3
    clock.now += 2
    with pytest.raises(ResourceExhausted):
        attempts.wait_after(ResourceExhausted("full", retry_after=1.0))
    clock.now += 2
    assert attempts.seconds_left() == 0


@pytest.mark.parametrize("error", [InvalidArgument("wrong"), ResourceExhausted("too large"), Unavailable("gone")])
def test_what_is_not_worth_it_is_not_tried_again(error):
    attempts = Attempts(Servers(["a"], "round_robin"), 5, None)
    attempts.next_address()
    with pytest.raises(type(error)):
        attempts.wait_after(error)


def test_servers_and_how_to_choose_must_be_known():
    with pytest.raises(ValueError, match="address: expected one at least"):
        Servers([], "round_robin")
    with pytest.raises(ValueError, match="balance: expected least_waiting or round_robin; found 'best'"):
        Servers(["a"], "best")
