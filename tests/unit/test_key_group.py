"""The admission of jobs of a key group, and how long they hold a slot."""

import random

import pytest

from jsq.codec import key_groups
from jsq.errors import BadEnvelope, BadOption
from jsq.model.key_group import (
    READY_PER_KEY,
    GroupLimits,
    GroupState,
    SlotHolder,
    SlotKind,
    WaitingJob,
    check_key,
    check_per_key,
    check_weights,
    key_token,
    slot_for,
)
from jsq.model.revision import Revision
from jsq.worker.stages.key_groups import keeps


@pytest.mark.parametrize("key", ["a", "tenant-7", "X_1", "0", "a" * 64])
def test_a_key_that_is_a_valid_subject_token_is_used_unchanged(key: str) -> None:
    assert key_token(key) == key


@pytest.mark.parametrize("key", ["a.b", "a b", "*", ">", "ü", "-a", "a" * 65, "~" + "0" * 40, "漢字"])
def test_any_other_key_is_hashed_to_a_token_that_is_not_a_key(key: str) -> None:
    token = key_token(key)

    assert token.startswith("~")
    assert len(token) == 41
    assert token.isascii()
    assert not set(token) & set(".*> ")
    assert key_token(token) != token
    assert token != key_token(key + "x")


@pytest.mark.parametrize("key", ["", "a\nb", "\x00", "\ud800", "a" * 257, 7, b"a", ["a"]])
def test_an_invalid_key_is_refused(key: object) -> None:
    with pytest.raises(BadOption, match=r"key must be printable text of 1 to 256"):
        check_key(key)


@pytest.mark.parametrize("number", [0, -1, 1_001, True, 1.0, "2"])
def test_an_invalid_number_of_jobs_per_key_is_refused(number: object) -> None:
    with pytest.raises(BadOption, match=r"per_key must be a whole number from 1 to 1,000"):
        check_per_key(number)


@pytest.mark.parametrize("weights", [{"a": 0}, {"a": True}, {"a": 1.5}, {"": 1}, ["a"], {7: 1}])
def test_invalid_weights_are_refused(weights: object) -> None:
    with pytest.raises(BadOption):
        check_weights(weights)


@pytest.mark.parametrize(
    ("per_key", "limits", "place", "most"),
    [
        (None, GroupLimits(), "start", READY_PER_KEY),
        (None, GroupLimits(weights={"k": 3}), "start", 3 * READY_PER_KEY),
        (None, GroupLimits(weights={"other": 3}), "start", READY_PER_KEY),
        (None, GroupLimits(per_key=1), "job", 1),
        (None, GroupLimits(per_key=4, weights={"k": 3}), "attempt", 4),
        (1, GroupLimits(per_key=4), "job", 1),
        (2, GroupLimits(per_key=1), "attempt", 2),
    ],
)
def test_the_limit_of_a_submit_overrides_that_of_the_queue(
    per_key: int | None, limits: GroupLimits, place: SlotKind, most: int
) -> None:
    assert slot_for(WaitingJob("a", "k", per_key), limits) == (place, most)


def test_a_group_admits_jobs_up_to_its_limit_and_again_after_a_release() -> None:
    limits, state = GroupLimits(per_key=2), GroupState()

    for number, id in enumerate("ab", 1):
        assert state.has_room_for(WaitingJob(id, "k", sequence=number), limits)
        state = state.with_slot_for(WaitingJob(id, "k", sequence=number), limits)

    assert state == GroupState((SlotHolder("a", "attempt"), SlotHolder("b", "attempt")), ("a", "b"), 2)
    assert not state.has_room_for(WaitingJob("c", "k"), limits)
    assert state.without({"a": 0}).has_room_for(WaitingJob("c", "k"), limits)
    assert state.without({"a": 0}) == GroupState((SlotHolder("b", "attempt"),), ("b",), 2)
    assert state.without({"x": 0}) == state
    assert state.without_admitting().admitting == ()
    assert (state.slot_of("a"), state.slot_of("c")) == (SlotHolder("a", "attempt"), None)


def test_a_late_release_does_not_release_a_newer_slot_of_the_same_job() -> None:
    limits, back = GroupLimits(per_key=2), WaitingJob("a", "k", sequence=9, previous_sequence=70)
    state = GroupState((SlotHolder("a", "attempt", 0),))

    assert not state.already_admitted(back)
    assert not state.has_room_for(back, limits)  # it has not released its slot yet
    state = state.without({"a": 0}).with_slot_for(back, limits)

    assert state.already_admitted(back)
    assert state.without({"a": 0}) == state.without({"a": 69}) == state
    assert state.without({"a": 70}).slots == ()


def test_a_lower_limit_admits_no_job_until_enough_slots_are_released() -> None:
    state = GroupState((SlotHolder("a", "attempt"), SlotHolder("b", "attempt"), SlotHolder("c", "attempt")))

    assert not state.has_room_for(WaitingJob("d", "k"), GroupLimits(per_key=2))
    assert not state.without({"a": 0}).has_room_for(WaitingJob("d", "k"), GroupLimits(per_key=2))
    assert state.without({"a": 0, "b": 0}).has_room_for(WaitingJob("d", "k"), GroupLimits(per_key=2))


def test_slots_that_are_held_until_the_start_have_a_limit_of_their_own() -> None:
    state = GroupState(
        (SlotHolder("a", "attempt"), *(SlotHolder(str(number), "start") for number in range(READY_PER_KEY)))
    )

    assert state.has_room_for(WaitingJob("c", "gold"), GroupLimits(weights={"gold": 2}))
    assert not state.has_room_for(WaitingJob("c", "k"), GroupLimits())
    assert state.without({"0": 0}).has_room_for(WaitingJob("c", "k"), GroupLimits())


def test_with_weights_keys_are_served_in_proportion() -> None:
    """Jobs start in the order of the queue.

    The start of a job releases a slot for the next one of its key.
    """
    limits, waits = GroupLimits(weights={"gold": 3}), {"gold": 300, "tin": 300}
    of_key = {key: GroupState() for key in waits}
    queue: list[tuple[str, str]] = []
    started: list[str] = []

    def admit(key: str) -> None:
        while waits[key] and of_key[key].has_room_for(
            waiting := WaitingJob(f"{key}{waits[key]}", key), limits
        ):
            of_key[key] = of_key[key].with_slot_for(waiting, limits)
            queue.append((key, waiting.id))
            waits[key] -= 1

    for key in waits:
        admit(key)
    for _ in range(200):
        key, id = queue.pop(0)
        started.append(key)
        of_key[key] = of_key[key].without({id: 0})
        admit(key)

    span = 4 * READY_PER_KEY
    assert all(started[n : n + span].count("tin") == READY_PER_KEY for n in range(200 - span))


def test_no_order_of_admissions_and_releases_exceeds_the_limit() -> None:
    for seed in range(50):
        chance, limits, state, backlog = (
            random.Random(seed),
            GroupLimits(per_key=3),
            GroupState(),
            list(range(1, 200)),
        )
        for _ in range(500):
            waiting = WaitingJob(str(backlog[0]), "k", sequence=backlog[0]) if backlog else None
            if waiting is not None and state.has_room_for(waiting, limits) and chance.random() < 0.7:
                state = state.with_slot_for(waiting, limits)
                backlog.pop(0)
            elif state.slots:
                state = state.without({chance.choice(state.slots).id: 0})
            assert len(state.slots) <= 3
            assert not {one.id for one in state.slots} & {str(one) for one in backlog}
        assert not backlog


@pytest.mark.parametrize(
    ("event", "job", "attempt", "start"),
    [
        (Revision("succeeded"), False, False, False),
        (Revision("failed"), False, False, False),
        (Revision("cancelled"), False, False, False),
        (Revision("expired"), False, False, False),
        (Revision("retrying"), True, False, False),
        (Revision("snoozed"), True, False, False),
        (Revision("retrying", quarantine="apart"), False, False, False),
        (Revision("interrupted"), True, True, False),
    ],
)
def test_a_slot_is_held_over_the_events_of_its_kind(
    event: Revision, job: bool, attempt: bool, start: bool
) -> None:
    assert [keeps("job", event), keeps("attempt", event), keeps("start", event)] == [job, attempt, start]


@pytest.mark.parametrize(
    "state",
    [
        GroupState(),
        GroupState((SlotHolder("a", "job", 7),)),
        GroupState((SlotHolder("a", "attempt"), SlotHolder("b", "start")), ("b",), 7),
    ],
)
def test_a_group_state_is_decoded_as_it_was_encoded(state: GroupState) -> None:
    assert key_groups.decode(key_groups.encode(state)) == state


@pytest.mark.parametrize(
    "payload", [b"", b"[]", b"{}", b'{"slots":{"a":["often",0]},"admitted_up_to":0}', b'{"slots":[]}']
)
def test_an_invalid_group_state_is_refused(payload: bytes) -> None:
    with pytest.raises(BadEnvelope):
        key_groups.decode(payload)
