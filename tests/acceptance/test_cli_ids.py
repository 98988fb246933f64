"""Commands accept and show ids with any characters unchanged."""

import asyncio
import json

import pytest

from jsq import App, Client, Reject
from tests.acceptance.conftest import Command
from tests.helpers.ids import ODD_IDS, PLAIN_IDS
from tests.helpers.workers import Working

IDS = (*PLAIN_IDS, *ODD_IDS)


async def test_commands_take_and_show_any_id(jsq: Command, app: App, working: Working) -> None:
    @app.task
    async def pick(fails: bool) -> str:
        if fails:
            raise Reject("no")
        return "picked"

    async with working():
        for id in ODD_IDS[:4]:
            submitted = await jsq("submit", "pick", "true", "--id", id, "--wait")
            assert submitted.code == 3
            assert id in submitted.err
        assert [job["id"] for job in (await jsq("job", "ls", "--state", "failed")).lines] == [*ODD_IDS[:4]]
        assert (await jsq("dead", "ls", "-o", "name")).out.splitlines() == [*ODD_IDS[:4]]
        for id in ODD_IDS[:2]:
            retried = await jsq("dead", "retry", id, "--json", "[false]")
            assert retried.code == 0, retried.err
            assert (await jsq("job", "result", id)).json == "picked"
        assert (await jsq("job", "retry", *ODD_IDS[2:4])).code == 0


async def test_commands_act_on_jobs_of_any_id(jsq: Command, client: Client) -> None:
    lines = b"".join(
        json.dumps({"@line": number, "@id": id, "@arguments": {"x": 1}}).encode() + b"\n"
        for number, id in enumerate(IDS)
    )
    bulk = await jsq("submit", "any", "-", "--delay", "1h", stdin=lines)
    assert bulk.out.splitlines() == [*IDS]
    assert sorted((await jsq("job", "ls", "-o", "name")).out.splitlines()) == sorted(IDS)
    found = await asyncio.gather(*(jsq("job", "get", "--", id) for id in IDS))
    assert [one.json["id"] for one in found] == [*IDS]
    moved = await jsq("job", "reschedule", "--delay", "2h", "--", *IDS)
    assert [job["id"] for job in moved.lines] == [*IDS]
    assert (await jsq("job", "edit", "--arg", "x=2", "--", "*")).json["arguments"][1] == {"x": 2}
    cancelled = await jsq("job", "cancel", "--", *IDS)
    assert [(job["id"], job["state"]) for job in cancelled.lines] == [(id, "cancelled") for id in IDS]
    events = await jsq("events", "--no-follow", "--job", "a.b")
    assert {event["id"] for event in events.lines} == {"a.b"}
    table = await jsq("job", "get", "Grüße", "-o", "table")
    assert "id: Grüße" in table.out
    removed = await jsq("job", "rm", "-o", "name", "--", "*", ">", "a.b")
    assert removed.out.splitlines() == ["*", ">", "a.b"]
    assert {job.id for job in await client.jobs.list()} == {*IDS} - {"*", ">", "a.b"}


@pytest.mark.parametrize("words", [("job", "get"), ("job", "cancel"), ("dead", "get"), ("job", "rm")])
async def test_an_invalid_id_is_refused_by_every_command(jsq: Command, words: tuple[str, ...]) -> None:
    for id in ("", "x" * 129, "a\tb"):
        ended = await jsq(*words, id)
        assert ended.code == 2
        assert "printable text of 1 to 128 characters" in ended.err
