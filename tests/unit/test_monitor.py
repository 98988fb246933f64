"""Reading and comparing the monitoring reports of servers."""

from typing import Any

import pytest

from jsq.broker.health.finding import judge_clock, judge_use
from jsq.broker.health.monitor import (
    ServerReport,
    StreamCopy,
    clock_offset,
    judge_copies,
    judge_server,
    read_report,
)

ALL = frozenset({"n0", "n1", "n2"})
FULL = StreamCopy(40_000, 1, 40_000)


def report(
    server: str, copy: StreamCopy, *, leads: bool = False, current: frozenset[str] = ALL, **more: Any
) -> ServerReport:
    fields: dict[str, Any] = {
        "version": "2.15.1",
        "health": "ok",
        "clock": 0.0,
        "storage": 5,
        "max_storage": 0,
    }
    return ServerReport(
        server, **fields | more, copies={"READY": copy}, current={"READY": current} if leads else {}
    )


def servers(*copies: StreamCopy, **more: Any) -> list[ServerReport]:
    return [report(f"n{place}", copy, leads=place == 0, **more) for place, copy in enumerate(copies)]


def findings(*rounds: list[ServerReport]) -> list[tuple[str, str]]:
    return [(one.severity, one.subject) for one in judge_copies(rounds)]


def test_equal_replicas_are_reported_as_ok() -> None:
    assert findings(servers(FULL, FULL, FULL)) == [("ok", "replicas")]


def test_a_replica_that_lacks_messages_is_an_error_that_names_the_fullest() -> None:
    [found] = judge_copies([servers(FULL, StreamCopy(31_968, 1, 40_000), FULL)] * 3)

    assert (found.severity, found.subject) == ("error", "stream READY")
    assert "n0 holds 40,000 (1 to 40,000), n1 holds 31,968 (1 to 40,000)" in found.message
    assert "step-down READY --preferred n0" in found.message


def test_replicas_of_a_busy_stream_that_keep_up_are_reported_as_ok() -> None:
    """The reports of the servers were read at different times."""
    rounds = [
        servers(
            StreamCopy(at, at, 2 * at),
            StreamCopy(at + 7, at + 7, 2 * at + 7),
            StreamCopy(at - 5, at - 5, 2 * at - 5),
        )
        for at in (100, 150, 200)
    ]

    assert findings(*rounds) == [("ok", "replicas")]


def test_a_busy_stream_with_a_damaged_replica_is_an_error() -> None:
    rounds = [
        servers(StreamCopy(at, 1, at), StreamCopy(at - 900, 1, at), StreamCopy(at, 1, at))
        for at in (1000, 1050, 1100)
    ]

    assert findings(*rounds) == [("error", "stream READY")]


def test_a_replica_that_is_not_current_is_not_compared() -> None:
    behind = servers(FULL, FULL, StreamCopy(10, 1, 10), current=frozenset({"n0", "n1"}))

    assert findings(behind) == [("ok", "replicas")]


def test_a_stream_on_one_server_is_not_compared() -> None:
    assert findings([report("n0", FULL, leads=True, current=frozenset({"n0"}))]) == []


def test_without_reports_nothing_is_compared() -> None:
    assert findings() == findings([]) == []


@pytest.mark.parametrize(
    ("wrong", "severity", "message"),
    [
        ({}, "ok", "nats-server 2.15.1, healthy"),
        ({"health": "stream is not current"}, "error", "is not healthy: stream is not current"),
        ({"version": "2.14.0"}, "error", "update it to 2.15.1 or newer"),
        ({"version": "2.16.0-RC.1"}, "ok", "nats-server 2.16.0-RC.1"),
        ({"clock": -2.5}, "warning", "2.5 s behind"),
        ({"clock": 11.0}, "error", "11.0 s ahead of"),
        ({"storage": 95, "max_storage": 100}, "warning", "95 of 100 storage"),
        ({"storage": 100, "max_storage": 100}, "error", "the server accepts no more"),
    ],
    ids=str,
)
def test_each_server_is_judged_by_its_own_report(wrong: dict[str, Any], severity: str, message: str) -> None:
    [found] = judge_server(report("n0", FULL, **wrong), 30.0)

    assert (found.severity, found.subject) == (severity, "server n0")
    assert message in found.message


def test_a_report_holds_only_the_streams_of_the_namespace() -> None:
    def stream(name: str, namespace: str, leader: str) -> dict[str, Any]:
        return {
            "name": name,
            "config": {"metadata": {"jsq.namespace": namespace}},
            "state": {"messages": 3, "first_seq": 1, "last_seq": 3},
            "cluster": {
                "leader": leader,
                "replicas": [{"name": "n1", "current": True}, {"name": "n2", "current": False}],
            },
        }

    streams = [stream("A", "jsq", "n0"), stream("B", "jsq", "n1"), stream("C", "other", "n0")]
    streams.append({"name": "D", "config": {}, "state": {}})
    found = read_report(
        {"status": "ok"},
        {"server_name": "n0", "version": "2.15.1", "now": "1970-01-01T00:01:40Z"},
        {"storage": 7, "config": {"max_storage": 9}, "account_details": [{"stream_detail": streams}]},
        "jsq",
        (99.0, 99.5),
    )

    assert found.copies == {"A": StreamCopy(3, 1, 3), "B": StreamCopy(3, 1, 3)}
    assert found.current == {"A": frozenset({"n0", "n1"})}
    assert (found.clock, found.storage, found.max_storage) == (0.5, 7, 9)


@pytest.mark.parametrize(
    ("reported", "ahead"), [(10.0, 0.0), (10.4, 0.0), (12.0, 1.5), (9.0, -1.0), (10.5, 0.0)]
)
def test_a_clock_offset_excludes_the_uncertainty_of_the_reply(reported: float, ahead: float) -> None:
    assert clock_offset(reported, 10.0, 10.5) == ahead


@pytest.mark.parametrize(
    ("ahead", "severity"),
    [(0.0, "ok"), (1.0, "ok"), (-1.0, "ok"), (1.1, "warning"), (-9.9, "warning"), (10.1, "error")],
)
def test_a_clock_is_an_error_from_a_third_of_the_lease(ahead: float, severity: str) -> None:
    assert judge_clock("clock", ahead, 30.0).severity == severity


@pytest.mark.parametrize(
    ("used", "limit", "severity"),
    [
        (5, -1, "ok"),
        (5, 0, "ok"),
        (90, 100, "ok"),
        (91, 100, "warning"),
        (100, 100, "error"),
        (101, 100, "error"),
    ],
)
def test_a_limit_warns_before_it_is_reached(used: int, limit: int, severity: str) -> None:
    assert judge_use("storage", "bytes", used, limit).severity == severity
