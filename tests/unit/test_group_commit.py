"""The choice between single and grouped writes: the mode with the faster measured acknowledgements."""

import pytest

from jsq.transport.group_commit import BUSY, MIN_SPEEDUP, RESAMPLE_SECONDS, SAMPLE_WRITES, GroupingPolicy


class Load:
    """Acknowledgements at a rate that depends on the mode of writing, with a simulated clock."""

    def __init__(self, single: float, grouped: float, pending: int = 100) -> None:
        self.rates = {False: single, True: grouped}
        self.pending = pending
        self.now = 1_000.0
        self.policy = GroupingPolicy()

    def run(self, writes: int) -> None:
        for _ in range(writes):
            self.now += 1 / self.rates[self.policy.grouped]
            self.policy.note(self.pending, self.now)

    @property
    def grouped(self) -> bool:
        return self.policy.grouped


def test_groups_are_used_if_every_write_waits_for_the_disk() -> None:
    load = Load(single=2_000, grouped=8_000)
    load.run(10 * SAMPLE_WRITES)
    assert load.grouped


def test_groups_are_tried_and_dropped_if_no_write_waits() -> None:
    load = Load(single=25_000, grouped=15_000)
    load.run(10 * SAMPLE_WRITES)
    assert not load.grouped


def test_groups_that_are_hardly_faster_are_not_used() -> None:
    load = Load(single=1_000, grouped=1_000 * MIN_SPEEDUP * 0.95)
    load.run(10 * SAMPLE_WRITES)
    assert not load.grouped


def test_few_writes_at_once_are_never_grouped() -> None:
    load = Load(single=2_000, grouped=8_000, pending=BUSY - 1)
    load.run(10 * SAMPLE_WRITES)
    assert not load.grouped


def test_the_other_mode_is_sampled_again_after_a_while() -> None:
    load = Load(single=25_000, grouped=15_000)
    load.run(10 * SAMPLE_WRITES)
    load.rates = {False: 2_000, True: 8_000}  # the server was restarted, and now syncs every write
    load.now += RESAMPLE_SECONDS
    load.run(10 * SAMPLE_WRITES)
    assert load.grouped


@pytest.mark.parametrize("grouped", [False, True])
def test_an_idle_time_does_not_count_against_a_mode(grouped: bool) -> None:
    load = Load(single=2_000, grouped=8_000) if grouped else Load(single=25_000, grouped=15_000)
    for _ in range(40):
        load.run(SAMPLE_WRITES // 4)
        load.now += 1.0
        load.policy.note(0, load.now)
    load.run(10 * SAMPLE_WRITES)
    assert load.grouped is grouped


def test_a_write_joins_a_group_only_during_or_just_after_many_writes() -> None:
    load = Load(single=2_000, grouped=8_000)
    load.now = 0.0  # long before the time that `wants_group` reads
    load.run(10 * SAMPLE_WRITES)
    assert load.policy.wants_group(BUSY)
    assert not load.policy.wants_group(BUSY - 1)
