"""`jsq bench`: each workload reports plausible figures and leaves nothing behind."""

import pytest

from jsq import Client
from tests.acceptance.conftest import Command

RATES = {"submit", "bulk", "drain", "mixed"}
LATENCIES = {"latency", "roundtrip"}


async def test_each_workload_is_run_by_jsq_and_by_the_baseline(jsq: Command) -> None:
    ended = await jsq("bench", "--jobs", "300", "--samples", "5", "-o", "json", environment={"JSQ_URL": ""})

    assert ended.code == 0, ended.err
    known = ended.json
    assert {result["workload"] for result in known["results"]} == RATES | LATENCIES
    for result in known["results"]:
        assert result["ratio"] > 0
        for figures in (result["figures"], result["floor"]):
            if result["workload"] in RATES:
                assert figures["per_second"] > 0
            else:
                assert 0 < figures["p50_ms"] <= figures["p99_ms"]
    assert known["settings"]["jobs"] == 300
    assert "cores" in known["machine"]


async def test_a_benchmark_on_an_existing_server_leaves_nothing_behind(jsq: Command, client: Client) -> None:
    url = client.login.url
    ended = await jsq(
        *("bench", "submit", "drain", "-s", url, "--jobs", "100"),
        *("--storage", "memory", "--payload", "0,2000", "-o", "table"),
    )

    assert ended.code == 0, ended.err
    words = [line.split()[:2] for line in ended.out.splitlines()]
    assert words[1:] == [["submit", "0"], ["drain", "0"], ["submit", "2000"], ["drain", "2000"]]
    streams = await (await client.broker()).jetstream.call("STREAM.NAMES")
    assert not [name for name in streams["streams"] or [] if "bench" in name.lower()]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nonsense"], "workload must "),
        (["--payload", "many"], "--payload 'many'"),
        (["--payload", "-1"], "payload must "),
        (["--storage", "tape"], "storage must "),
        (["--replicas", "2"], "replicas must "),
        (["--concurrency", "0"], "concurrency must "),
        (["--group-writes", "maybe"], "group_writes must "),
        (["--sync-interval", "soon"], "did not start"),
        (["-s", "nats://127.0.0.1:1"], "no NATS server answers"),
    ],
)
async def test_an_invalid_benchmark_is_refused(jsq: Command, words: list[str], message: str) -> None:
    ended = await jsq("bench", "submit", "--jobs", "10", *words)

    assert ended.code in (2, 7)
    assert message in ended.err
    assert "Traceback" not in ended.err
