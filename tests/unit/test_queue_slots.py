"""The slots of a queue: shares, requests, leases and rotation, as pure functions and in random histories."""

import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jsq.codec.queue_slots import decode_slots, encode_slots
from jsq.model.queue_slots import (
    LAPSE_MARGIN,
    TURN_SECONDS,
    SlotHolding,
    SlotTable,
    SlotUse,
    fair_level,
    may_grow,
    settle_slots,
    usable_slots,
)

LEASE = 10.0
NEVER = 1e9

names = st.sampled_from(["a", "b", "c", "d", "e"])
limits = st.integers(1, 12)


def table(**holders: tuple[int, int] | tuple[int, int, float]) -> SlotTable:
    """A table of live workers: their slots, the slots that they want, and the time since they hold them."""
    return SlotTable(
        {
            name: SlotHolding(one[0], one[1], one[2] if len(one) > 2 else 0.0, NEVER)
            for name, one in holders.items()
        }
    )


tables = st.dictionaries(
    names, st.builds(SlotHolding, st.integers(0, 4), st.integers(0, 20), st.floats(0, 100), st.just(NEVER))
).map(SlotTable)


def settle(before: SlotTable, worker: str, use: SlotUse, limit: int, now: float = 0.0) -> SlotTable:
    return settle_slots(before, worker, use, limit, now=now, until=now + LEASE)


def slots(found: SlotTable) -> dict[str, int]:
    return {name: one.slots for name, one in found.holders.items()}


# -- shares ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wants", "limit", "level", "left"),
    [
        ([], 5, 0, 0),
        ([1, 1], 5, 1, 0),
        ([1, 9], 5, 4, 0),
        ([9, 9], 5, 2, 1),
        ([2, 9, 9], 8, 3, 0),
        ([3, 3, 3], 2, 0, 2),
        ([0, 4], 3, 3, 0),
    ],
)
def test_shares_of_slots_are_equalized(wants: list[int], limit: int, level: int, left: int) -> None:
    found, rest = fair_level(wants, limit)
    assert (min(found, max(wants, default=0)), rest) == (level, left)


@given(tables, limits)
def test_shares_use_exactly_the_limit(before: SlotTable, limit: int) -> None:
    shares = before.shares(limit)
    wanted = {name: one.wanted for name, one in before.holders.items()}
    assert sum(shares.values()) == min(limit, sum(wanted.values()))
    assert all(0 <= shares[name] <= wanted[name] for name in shares)
    least = min((shares[name] for name in shares if shares[name] < wanted[name]), default=math.inf)
    assert max(shares.values(), default=0) <= least + 1


def test_an_indivisible_slot_stays_with_its_worker() -> None:
    assert table(a=(1, 9, 5), b=(2, 9, 9)).shares(3) == {"a": 1, "b": 2}
    assert table(a=(0, 1, 5), b=(1, 1, 9)).shares(1) == {"a": 0, "b": 1}


def test_the_first_free_slot_goes_to_the_worker_that_waits_longest() -> None:
    assert table(a=(0, 1, 7), b=(0, 1, 3), c=(0, 1, 5)).shares(1) == {"a": 0, "b": 1, "c": 0}


# -- decisions of a worker -------------------------------------------------------------------------------


def test_a_single_worker_takes_the_slots_it_wants_up_to_the_limit() -> None:
    assert slots(settle(SlotTable(), "a", SlotUse(wanted=3), 5)) == {"a": 3}
    assert slots(settle(SlotTable(), "a", SlotUse(wanted=30), 5)) == {"a": 5}


def test_a_worker_that_gets_nothing_waits_in_the_table() -> None:
    found = settle(table(a=(1, 1)), "b", SlotUse(wanted=1), 1, now=4.0)
    assert found.of("b") == SlotHolding(0, 1, since=4.0, until=4.0 + LEASE)
    assert settle(found, "b", SlotUse(wanted=1), 1, now=5.0) is found


def test_idle_slots_are_given_back_at_once_when_another_worker_lacks_them() -> None:
    before = table(a=(5, 5), b=(0, 2))
    assert slots(settle(before, "a", SlotUse(running=1, wanted=2, least=5), 5)) == {"a": 3, "b": 0}


def test_idle_slots_are_kept_for_a_while_when_no_worker_lacks_them() -> None:
    before = table(a=(5, 5), b=(0, 0))
    assert settle(before, "a", SlotUse(running=0, wanted=1, least=5), 5) is before
    assert slots(settle(before, "a", SlotUse(running=0, wanted=1, least=1), 5)) == {"a": 1, "b": 0}


def test_slots_in_use_are_never_given_back() -> None:
    before = table(a=(5, 5), b=(0, 9))
    assert slots(settle(before, "a", SlotUse(running=4, wanted=9, least=9), 5)) == {"a": 4, "b": 0}
    full = SlotUse(running=5, wanted=9, least=9)
    assert settle(before, "a", full, 5).of("a").slots == 5
    assert usable_slots(before, "a", full, 5, now=0.0) == 3


def test_a_lower_limit_is_reached_as_jobs_end() -> None:
    before = table(a=(5, 9))
    assert usable_slots(before, "a", SlotUse(5, 9, backlog=True), 2, now=0.0) == 2
    assert settle(before, "a", SlotUse(running=4, wanted=9, least=9), 2).of("a").slots == 4
    assert settle(before, "a", SlotUse(running=1, wanted=9, least=9), 2).of("a").slots == 2


def test_a_busy_worker_eventually_yields_its_slot_to_one_without_any() -> None:
    before = table(a=(1, 9, 10.0), b=(0, 1, 11.0))
    busy = SlotUse(running=0, wanted=9, backlog=True, least=9)
    early, late = 10.0 + TURN_SECONDS / 2, 10.0 + TURN_SECONDS
    assert settle(before, "a", busy, 1, now=early) is before
    given = settle(before, "a", busy, 1, now=late)
    assert slots(given) == {"a": 0, "b": 0}
    assert settle(given, "a", busy, 1, now=late + 0.1).of("a").slots == 0  # the other worker comes first
    assert settle(given, "b", SlotUse(wanted=1), 1, now=late + 0.1).of("b").slots == 1


def test_workers_without_a_backlog_do_not_rotate_slots() -> None:
    before = table(a=(1, 1, 10.0), b=(0, 1, 11.0))
    assert settle(before, "a", SlotUse(wanted=1, least=1), 1, now=99.0) is before


def test_a_worker_may_grow_up_to_its_share_or_while_slots_are_free() -> None:
    assert may_grow(table(a=(1, 1)), "a", 2, 2)
    assert may_grow(table(a=(1, 4), b=(3, 9)), "a", 4, 4)
    assert may_grow(table(a=(2, 2), b=(2, 9)), "a", 4, 4)
    assert not may_grow(table(a=(2, 4), b=(2, 9)), "a", 4, 4)
    assert not may_grow(table(a=(4, 4)), "a", 9, 4)


def test_a_worker_without_capacity_yields_idle_slots_to_one_that_wants_more() -> None:
    before = table(a=(1, 2), b=(1, 1))
    requested = settle(before, "b", SlotUse(running=1, wanted=2, least=2), 2)
    assert requested.of("b").wanted == 2
    given = settle(requested, "a", SlotUse(running=0, wanted=0, least=2), 2)
    assert settle(given, "b", SlotUse(running=1, wanted=2, least=2), 2).of("b").slots == 2


# -- leases ----------------------------------------------------------------------------------------------


def test_the_slots_of_a_dead_worker_are_free_after_its_lease() -> None:
    before = SlotTable({"a": SlotHolding(2, 2, 0.0, until=50.0)})
    use = SlotUse(wanted=2)
    assert settle(before, "b", use, 2, now=50.0 + LAPSE_MARGIN / 2).of("b").slots == 0
    found = settle(before, "b", use, 2, now=50.0 + LAPSE_MARGIN)
    assert slots(found) == {"b": 2}


def test_a_renewal_changes_the_lease_and_adds_no_worker() -> None:
    before = table(a=(2, 3, 7.0))
    assert before.renew("a", 99.0).of("a") == SlotHolding(2, 3, 7.0, 99.0)
    assert before.renew("b", 99.0) is before


def test_a_worker_that_leaves_frees_its_slots() -> None:
    assert slots(table(a=(2, 2), b=(1, 1)).without("a")) == {"b": 1}


# -- any history -----------------------------------------------------------------------------------------

steps = st.tuples(names, st.integers(0, 9), st.integers(0, 9), st.booleans(), st.floats(0, 4), limits)


@given(st.lists(steps, max_size=60))
def test_no_history_exceeds_the_limit_or_takes_a_used_slot(
    history: list[tuple[str, int, int, bool, float, int]],
) -> None:
    """Workers run any number of jobs within their slots; the limit may change at any time."""
    found, now, running = SlotTable(), 0.0, dict[str, int]()
    for worker, jobs, more, backlog, passed, limit in history:
        now += passed
        live = found.live(now)
        running = {name: count for name, count in running.items() if name in live.holders}
        mine = live.of(worker).slots
        usable = usable_slots(live, worker, SlotUse(running.get(worker, 0), jobs, backlog), limit, now)
        running[worker] = min(jobs, max(running.get(worker, 0) if jobs else 0, min(usable, mine)))
        use = SlotUse(running[worker], running[worker] + more, backlog, least=more)
        after = settle(found, worker, use, limit, now)
        if after is not found:
            assert after.held <= max(limit, live.held)
            assert after.of(worker).slots >= running[worker]
            assert after.of(worker).slots <= max(limit, mine)
            others = slots(live) | {worker: 0}
            assert slots(after) | {worker: 0} == others
        found = after


@given(st.dictionaries(names, st.integers(1, 9), min_size=1), limits)
def test_workers_that_decide_in_rotation_reach_their_shares(wants: Mapping[str, int], limit: int) -> None:
    found = SlotTable()
    for round_number in range(4):
        for worker, wanted in wants.items():
            use = SlotUse(running=0, wanted=wanted, least=wanted)
            found = settle(found, worker, use, limit, now=float(round_number) / 10)
    assert found.held == min(limit, sum(wants.values()))
    assert slots(found) == found.shares(limit)


@given(st.integers(2, 5), st.integers(1, 4))
def test_every_busy_worker_gets_slots_eventually(workers: int, limit: int) -> None:
    """Each worker uses all of its slots for one job after another."""
    found, now, served = SlotTable(), 0.0, dict.fromkeys(range(workers), 0)
    for _ in range(20 * workers):
        now += TURN_SECONDS / 4
        for worker in served:
            use = SlotUse(running=0, wanted=9, backlog=True, least=9)
            found = settle_slots(found, str(worker), use, limit, now=now, until=NEVER)
            served[worker] += found.of(str(worker)).slots
            assert found.held <= limit
    assert min(served.values()) > 0


# -- encoding --------------------------------------------------------------------------------------------


def test_a_slot_table_is_decoded_as_it_was_encoded() -> None:
    before = SlotTable({"host-1-ab": SlotHolding(2, 3, 1700000000.123, 1700000030.5), "b": SlotHolding()})
    assert decode_slots(encode_slots(before)) == before


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"workers": {"a": [1]}}', b'{"workers": {"a": "x"}}'])
def test_an_unreadable_slot_table_is_empty(body: bytes) -> None:
    assert decode_slots(body) == SlotTable()
