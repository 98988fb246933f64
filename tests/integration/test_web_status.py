"""The status of jobs over HTTP, in Starlette, FastAPI and Litestar: JSON, server-sent events, and cancels."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

import fastapi
import httpx
import litestar
import pytest
from starlette.applications import Starlette
from starlette.requests import Request

from jsq import App, Context
from jsq.contrib import fastapi as for_fastapi
from jsq.contrib import litestar as for_litestar
from jsq.contrib import starlette as for_starlette
from jsq.contrib.asgi import JobRule
from jsq.model.job import JobRecord
from jsq.server import EmbeddedServer
from tests.helpers.conditions import Until
from tests.helpers.web import requests_to, served
from tests.helpers.workers import Working

OWNER = {"x-user": "ann"}
"""The header of a user who may see the jobs of `Report`."""


def is_owner(request: Any, job: JobRecord) -> bool:
    return bool(job.headers.get("user") == request.headers.get("x-user"))


def owner_rule(x_user: Annotated[str, fastapi.Header()] = "") -> JobRule:
    return lambda job: job.headers.get("user") == x_user


def starlette_server(app: App, **options: Any) -> Any:
    return Starlette(routes=for_starlette.status_routes(app, authorize=is_owner, **options))


def fastapi_server(app: App, **options: Any) -> Any:
    server = fastapi.FastAPI()
    server.include_router(for_fastapi.status_router(app, authorize=owner_rule, **options))
    return server


def litestar_server(app: App, **options: Any) -> Any:
    return litestar.Litestar([for_litestar.status_handlers(app, authorize=is_owner, **options)])


SERVERS = {"starlette": starlette_server, "fastapi": fastapi_server, "litestar": litestar_server}
each_framework = pytest.mark.parametrize("framework", SERVERS)


class Report:
    """A task that reports progress, one step for each `go`."""

    def __init__(self, app: App) -> None:
        self.steps: asyncio.Queue[float | None] = asyncio.Queue()

        @app.task(name="report", retries=0)
        async def report(ctx: Context, fails: bool = False) -> dict[str, float]:
            while (step := await self.steps.get()) is not None:
                ctx.progress(step, f"step {step}")
            if fails:
                raise ValueError("a secret of the task")
            return {"total": float("inf")}

        self.submit = report.options(headers={"user": "ann"}).submit


@pytest.fixture
def report(app: App) -> Report:
    return Report(app)


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a stream; the id of each is under `sequence`."""
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append(json.loads(fields["data"]) | {"sequence": int(fields["id"])})
    return found


@each_framework
async def test_a_status_is_json_without_the_result_and_the_error(
    app: App, report: Report, working: Working, framework: str
) -> None:
    async with requests_to(SERVERS[framework](app), OWNER) as web, working():
        job = await report.submit(True)
        await report.steps.put(None)
        await job.wait(10)
        answer = await web.get(f"/jobs/{job.id}")
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("application/json")
        assert answer.headers["cache-control"] == "no-store"
        found = answer.json()
        assert (found["id"], found["state"], found["final"]) == (job.id, "failed", True)
        assert (found["reason"], found["attempt"]) == ("error", 1)
        assert "secret" not in answer.text
        assert {"result", "error"} & found.keys() == set()
        assert (await web.delete(f"/jobs/{job.id}")).status_code == 405


@each_framework
async def test_results_and_errors_are_shown_if_asked_for(
    app: App, report: Report, working: Working, framework: str
) -> None:
    async with requests_to(SERVERS[framework](app, include_result=True), OWNER) as web, working():
        good, bad = await report.submit(), await report.submit(True)
        for _ in range(2):
            await report.steps.put(None)
        await good.wait(10)
        await bad.wait(10)
        assert (await web.get(f"/jobs/{good.id}")).json()["result"] == {"total": None}
        assert "a secret of the task" in (await web.get(f"/jobs/{bad.id}")).json()["error"]
        # The stream of a job that has ended is its last state.
        [last] = events_of((await web.get(f"/jobs/{good.id}/events")).text)
        assert (last["state"], last["result"]) == ("succeeded", {"total": None})


@each_framework
async def test_a_hidden_or_unknown_job_is_not_found(app: App, report: Report, framework: str) -> None:
    async with requests_to(SERVERS[framework](app, cancel=True), OWNER) as web:
        job = await report.submit()
        answers = [
            await web.request(method, f"/jobs/{id}{end}", headers={"x-user": user})
            for method, end in (("GET", ""), ("GET", "/events"), ("DELETE", ""))
            for id, user in ((job.id, "bob"), ("unknown", "ann"), ("x" * 200, "ann"))
        ]
        assert {(answer.status_code, answer.text) for answer in answers} == {
            (404, '{"detail":"no such job"}')
        }
        assert (await job.status()).state == "queued"


@each_framework
async def test_a_cancel_is_possible_if_it_is_switched_on(app: App, report: Report, framework: str) -> None:
    async with requests_to(SERVERS[framework](app, cancel=True), OWNER) as web:
        job = await report.submit()
        answer = await web.delete(f"/jobs/{job.id}")
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
        assert (await job.status()).state == "cancelled"


@each_framework
async def test_a_stream_has_each_change_and_ends_with_the_job(
    app: App, report: Report, working: Working, framework: str
) -> None:
    async with served(SERVERS[framework](app, heartbeat=0.05, include_result=True), OWNER) as web:
        job = await report.submit()
        seen: list[dict[str, Any]] = []
        beats = 0
        async with web.stream("GET", f"/jobs/{job.id}/events") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["x-accel-buffering"] == "no"
            async with working():
                async for text in blocks_of(answer):
                    beats += text.startswith(":")
                    seen += events_of(text)
                    if seen and seen[-1]["state"] == "running" and beats:
                        if seen[-1]["progress"] is None:
                            report.steps.put_nowait(0.5)
                        elif report.steps.empty():
                            report.steps.put_nowait(None)
        assert [one["state"] for one in seen][:2] == ["queued", "running"]
        assert (0.5, "step 0.5") in [(one["progress"], one["text"]) for one in seen]
        assert (seen[-1]["state"], seen[-1]["final"], seen[-1]["progress"]) == ("succeeded", True, 1)
        assert [one["sequence"] for one in seen] == sorted({one["sequence"] for one in seen})

        again = {"last-event-id": str(seen[-1]["sequence"])}
        assert (await web.get(f"/jobs/{job.id}/events", headers=again)).status_code == 204
        before = {"last-event-id": str(seen[0]["sequence"])}
        [last] = events_of((await web.get(f"/jobs/{job.id}/events", headers=before)).text)
        assert last == seen[-1]


async def blocks_of(answer: httpx.Response) -> AsyncIterator[str]:
    """The blocks of a stream of events, as they arrive."""
    text = ""
    async for part in answer.aiter_text():
        *blocks, text = (text + part).split("\n\n")
        for block in blocks:
            yield block


@each_framework
async def test_a_client_that_leaves_ends_the_subscription(
    app: App, report: Report, until: Until, framework: str
) -> None:
    async def subscriptions() -> int:
        return len((await app.client.broker()).wire._nats._subs)

    async with served(SERVERS[framework](app), OWNER) as web:
        job = await report.submit()
        before = await subscriptions()
        async with web.stream("GET", f"/jobs/{job.id}/events") as answer:
            assert [block async for block in first(blocks_of(answer))]
            assert await subscriptions() == before + 2
        found = [before + 2]

        async def is_over() -> bool:
            found.append(await subscriptions())
            return found[-1] == before

        await until(is_over)


async def first(blocks: AsyncIterator[str]) -> AsyncIterator[str]:
    async for block in blocks:
        yield block
        return


@each_framework
async def test_an_outage_is_answered_with_503(own_server: EmbeddedServer, framework: str) -> None:
    async with App(own_server.url) as app:
        report = Report(app)
        job = await report.submit()
        async with requests_to(SERVERS[framework](app), OWNER) as web:
            assert (await web.get(f"/jobs/{job.id}")).status_code == 200
            own_server.kill()
            answers = await asyncio.gather(*(web.get(f"/jobs/{job.id}{end}") for end in ("", "/events")))
    assert [answer.status_code for answer in answers] == [503, 503]
    assert {answer.headers["retry-after"] for answer in answers} == {"5"}


async def test_the_openapi_of_fastapi_names_the_answers(app: App) -> None:
    async with requests_to(fastapi_server(app, cancel=True, include_result=True), OWNER) as web:
        found = (await web.get("/openapi.json")).json()
    assert set(found["paths"]) == {"/jobs/{id}", "/jobs/{id}/events"}
    assert set(found["paths"]["/jobs/{id}"]) == {"get", "delete"}
    assert "result" in found["components"]["schemas"]["JobResultView"]["properties"]
    assert "text/event-stream" in found["paths"]["/jobs/{id}/events"]["get"]["responses"]["200"]["content"]


async def test_a_rule_may_be_a_coroutine_and_must_return_true(app: App, report: Report) -> None:
    async def may_see(request: Request, job: JobRecord) -> Any:
        return {"yes": True, "no": False, "truthy": "yes"}[request.headers["x-user"]]

    server = Starlette(routes=for_starlette.status_routes(app, "/state", authorize=may_see))
    async with requests_to(server, OWNER) as web:
        job = await report.submit()
        answers = [
            (await web.get(f"/state/{job.id}", headers={"x-user": user})).status_code
            for user in ("yes", "no", "truthy")
        ]
    assert answers == [200, 404, 404]
