"""`jsq queue pause | resume | update`, and the pauses and settings in `queue ls` and `queue stats`."""

import pytest

from jsq import App, Client
from tests.acceptance.conftest import Command


async def test_a_queue_is_paused_shown_as_paused_and_resumed(jsq: Command, client: Client) -> None:
    await client.admin.provision()

    paused = await jsq("queue", "pause", "default")
    assert paused.code == 0
    assert paused.json == {"queue": "default", "task": "", "key": "", "reason": "paused", "until": None}
    [row] = (await jsq("queue", "ls")).lines
    assert (row["lease"], row["replicas"], row["paused"]) == ("30s", 1, "yes")
    [stats] = (await jsq("queue", "stats")).lines
    assert [one["reason"] for one in stats["pauses"]] == ["paused"]
    assert (await jsq("queue", "stats", "-o", "table")).out.split()[-1] == "yes"

    assert (await jsq("queue", "resume", "default")).code == 0
    assert (await jsq("queue", "resume", "default")).code == 0
    assert [row["paused"] for row in (await jsq("queue", "ls")).lines] == [""]


async def test_a_task_and_a_key_are_paused_until_a_time(jsq: Command, client: Client) -> None:
    await client.admin.provision()

    assert (await jsq("queue", "pause", "default", "--task", "send", "--until", "1h")).code == 0
    until = await jsq("queue", "pause", "default", "--key", "tenant 7", "--until", "2100-01-01T00:00Z")
    assert until.code == 2  # more than a year ahead
    keyed = await jsq("queue", "pause", "default", "--key", "tenant 7", "--until", "90")
    assert keyed.json["until"].startswith("20")
    [shown] = (await jsq("queue", "ls")).lines
    assert shown["paused"].startswith("task send until ")
    assert ", key tenant 7 until " in shown["paused"]
    assert (await jsq("queue", "resume", "default", "--task", "send")).code == 0
    assert (await jsq("queue", "resume", "default", "--key", "tenant 7")).code == 0
    assert await client.queues.pauses() == {}


async def test_settings_of_a_queue_are_updated(jsq: Command, app: App, client: Client) -> None:
    await client.admin.provision({"mail": app.queue("mail", concurrency=5)})

    words = ("--concurrency", "20", "--rate", "100/m", "--max-jobs", "1000", "--lease", "1m")
    settings = (await jsq("queue", "update", "mail", *words)).json
    assert (settings["concurrency"], settings["rate"], settings["max_jobs"], settings["lease"]) == (
        20,
        "100/m",
        1000,
        60,
    )
    settings = (await jsq("queue", "update", "mail", "--rate", "none", "--max-jobs", "none")).json
    assert (settings["concurrency"], settings["rate"], settings["max_jobs"]) == (20, None, None)
    settings = (
        await jsq("queue", "update", "mail", "--per-key", "2", "--weight", "a=b=3", "--weight", "c=2")
    ).json
    assert (settings["per_key"], settings["weights"]) == (2, {"a=b": 3, "c": 2})
    settings = (await jsq("queue", "update", "mail", "--per-key", "none", "--weight", "none")).json
    assert (settings["per_key"], settings["weights"], settings["concurrency"]) == (None, {}, 20)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("pause", "nope"), 5, "there is no queue nope"),
        (("resume", "nope"), 5, "there is no queue nope"),
        (("update", "nope", "--rate", "1/s"), 5, "there is no queue nope"),
        (("pause", "default", "--task", "a", "--key", "b"), 2, "key must not be combined with task"),
        (
            ("pause", "default", "--until", "soon"),
            2,
            "'soon' is neither a duration (90, 5m, 2d) nor a moment with",
        ),
        (("pause", "default", "--until", "2020-01-01T00:00Z"), 2, "must be in the future"),
        (("pause", "default", "--until", "0"), 2, "until must "),
        (("pause", "a.b"), 2, "queue name must be"),
        (("update", "default"), 2, "give a setting to change"),
        (("update", "default", "--rate", "often"), 2, "rate must "),
        (("update", "default", "--concurrency", "0"), 2, "concurrency must "),
        (
            ("update", "default", "--concurrency", "many"),
            2,
            "--concurrency must be a whole number or none, got 'many'",
        ),
        (("update", "default", "--weight", "gold"), 2, "weight"),
        (("update", "default", "--weight", "gold=0"), 2, "weight of gold must "),
        (("update", "default", "--per-key", "0"), 2, "per_key must "),
        (
            ("update", "default", "--storage", "memory"),
            2,
            "storage must not be changed while the queue exists",
        ),
        (("update", "default", "--replicas", "3"), 2, "jsq provision --replicas"),
    ],
)
async def test_an_invalid_pause_or_setting_is_reported_in_one_line(
    jsq: Command, client: Client, words: tuple[str, ...], code: int, message: str
) -> None:
    await client.admin.provision()

    done = await jsq("queue", *words)

    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("queues", ["mail=0", "mail=x", "mail=3,mail=1", "a.b=3"])
async def test_invalid_weights_are_reported_in_one_line(jsq: Command, queues: str) -> None:
    (jsq.folder / "shop.py").write_text("from jsq import App\napp = App()\n@app.task\ndef sell(): ...\n")

    done = await jsq("worker", "shop:app", "--queues", queues)

    assert done.code == 2
    assert " must " in done.err
    assert "Traceback" not in done.err


async def test_slots_and_a_key_are_submitted(jsq: Command, client: Client) -> None:
    id = (await jsq("submit", "add", "1", "2", "--slots", "4", "--key", "tenant")).out.strip()

    broker = await client.broker()
    message = await broker.reads.last(
        broker.subjects.streams.groups("default"), f"{client.namespace}.group.>"
    )
    assert message is not None
    assert message.headers["Nats-Subject"].endswith(id)
    assert '"slots":4' in message.headers["Jsq-Job"]
    assert (await jsq("submit", "add", "--slots", "0")).code == 2
