"""`jsq job ls | promote | move | retry | rm` and `jsq submit --expires`: filters, due times and expiry."""

from typing import Any

from jsq import App, Client, Reject
from tests.acceptance.conftest import Command
from tests.helpers.conditions import Until
from tests.helpers.workers import Working

WAIT = 60.0


async def test_an_expired_job_is_reported_as_expired(jsq: Command, client: Client) -> None:
    sent = await jsq("submit", "add", "1", "2", "--expires", "100ms", "--wait")
    assert (sent.code, sent.out) == (3, "")
    assert "has expired: no worker started it before it expired" in sent.err

    [listed] = (await jsq("job", "ls", "--state", "expired")).lines
    known = (await jsq("job", "get", listed["id"])).json
    assert (known["state"], known["at"]) == ("expired", known["expires"])
    refused = await jsq("job", "cancel", listed["id"])
    assert (refused.code, "is expired: it cannot be cancelled" in refused.err) == (6, True)

    for words in (["--expires", "soon"], ["--expires", "0"], ["--expires", "5", "--delay", "10"]):
        bad = await jsq("submit", "add", *words)
        assert (bad.code, bad.out) == (2, "")
        assert "Traceback" not in bad.err


async def test_a_scheduled_job_is_rescheduled_and_promoted(jsq: Command, client: Client) -> None:
    jobs = [await client.task("add").options(delay=3600, tags=["held"]).submit(1, n) for n in range(3)]

    moved = await jsq("job", "reschedule", jobs[0].id, "--delay", "2h")
    assert (moved.code, moved.lines[0]["state"]) == (0, "scheduled")
    assert moved.lines[0]["due"] == (await jsq("job", "get", jobs[0].id)).json["due"]
    for words in ([], ["--delay", "5", "--at", "2030-01-01T00:00Z"], ["--at", "tomorrow"]):
        assert (await jsq("job", "reschedule", jobs[0].id, *words)).code == 2

    assert (await jsq("job", "promote", jobs[0].id)).code == 0
    unconfirmed = await jsq("job", "promote", "--tag", "held")
    assert (unconfirmed.code, "this would promote" in unconfirmed.err) == (2, True)
    assert (await jsq("job", "promote", "--tag", "held", "--arg", "1=2", "--yes")).json == {"promoted": 1}
    assert (await jsq("job", "promote", "never")).code == 5


async def test_jobs_are_selected_by_their_arguments(
    jsq: Command, app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task(retries=0)
    async def picky(user: dict[str, int]) -> None:
        raise Reject("no")

    jobs: list[Any] = [await picky.options(tags=["x"], headers={"A": "b"}).submit({"id": n}) for n in (1, 2)]
    async with working():
        for job in jobs:
            await job.wait(WAIT)
        await until(client.dead_letters.list)

    listed = await jsq("job", "ls", "--arg", "user.id=2", "--since", "1h", "--tag", "x")
    assert [(job["id"], job["headers"]) for job in listed.lines] == [(jobs[1].id, {"A": "b"})]
    for words in (["--arg", "a..b=1"], ["--arg", "a"], ["--since", "soon"], ["--state", "bogus"]):
        bad = await jsq("job", "ls", *words)
        assert (bad.code, bad.out) == (2, "")

    assert (await jsq("job", "retry", "--tag", "x", "--arg", "user.id=1", "--yes")).json == {"retried": 1}
    unconfirmed = await jsq("job", "rm", "--tag", "x")
    assert (unconfirmed.code, "this would remove 1 job; confirm with --yes" in unconfirmed.err) == (2, True)
    refused = await jsq("job", "rm", jobs[0].id)
    assert (refused.code, "only a job that has ended can; cancel it first" in refused.err) == (6, True)
    assert (await jsq("job", "rm", "--state", "retrying", "--dry-run")).code == 2
    removed = await jsq("job", "rm", jobs[1].id)
    assert (removed.code, removed.lines) == (0, [{"id": jobs[1].id}])
    assert (await jsq("job", "get", jobs[1].id)).code == 5
