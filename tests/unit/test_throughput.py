"""The throughput of a queue, from samples of its stream."""

import functools

from jsq.model.throughput import QueueSample, Throughput, add_sample, throughput_of


def collected(*samples: QueueSample) -> list[QueueSample]:
    return functools.reduce(add_sample, samples, list[QueueSample]())


def test_one_sample_has_no_throughput() -> None:
    assert throughput_of([]) is None
    assert throughput_of(collected(QueueSample(0, 100, 50))) is None


def test_throughput_is_the_difference_of_two_samples() -> None:
    samples = collected(QueueSample(0, 100, 50), QueueSample(10, 150, 80))
    assert throughput_of(samples) == Throughput(5.0, 3.0, 10)


def test_the_window_is_a_minute_and_begins_with_the_last_sample_before_it() -> None:
    samples = collected(*(QueueSample(10 * n, 10 * n, 0) for n in range(20)))
    assert [one.at for one in samples] == [130, 140, 150, 160, 170, 180, 190]
    assert throughput_of(samples) == Throughput(1.0, 0.0, 60)


def test_a_long_gap_is_measured_as_a_whole() -> None:
    assert throughput_of(collected(QueueSample(0, 0, 0), QueueSample(200, 100, 20))) == Throughput(
        0.5, 0.1, 200
    )


def test_a_recreated_queue_discards_earlier_samples() -> None:
    samples = collected(QueueSample(0, 100, 100), QueueSample(10, 5, 0))
    assert samples == [QueueSample(10, 5, 0)]
