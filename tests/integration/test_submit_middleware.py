"""Middleware of submits: it learns of every end of a submit, and prepares the jobs of a bulk together."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from jsq import App, BadOption, Client, Middleware, QueueFull
from jsq.model.job import Job
from jsq.server import EmbeddedServer


class Notes(Middleware):
    """Notes the calls of its methods, and marks the jobs."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.drops_jobs = self.fails_at_end = False

    def submitting(self, job: Job) -> Job:
        self.calls.append(f"submitting {job.id}")
        return replace(job, headers={"marked": "alone"})

    def submitting_many(self, jobs: Sequence[Job]) -> Sequence[Job]:
        self.calls.append(f"submitting {len(jobs)}")
        return [replace(job, headers={"marked": "bulk"}) for job in jobs[self.drops_jobs :]]

    def submitted(self, job: Job) -> None:
        self.calls.append(f"submitted {job.id}")

    def submit_ended(self, jobs: Sequence[Job], error: BaseException | None) -> None:
        self.calls.append(f"ended {len(jobs)} {type(error).__name__}")
        if self.fails_at_end:
            raise ValueError("no more")


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
async def app(server: EmbeddedServer, namespace: str, notes: Notes) -> AsyncIterator[App]:
    async with App(server.url, namespace=namespace, middleware=[notes]) as app:
        app.queue("few", max_jobs=2)
        await app.client.admin.provision(app.declared)
        app.task(queue="few", name="send")(send)
        yield app


async def send(number: int) -> None: ...


async def test_the_end_of_a_submit_is_reported_for_a_stored_a_known_and_a_refused_job(
    app: App, client: Client, notes: Notes
) -> None:
    call = app.tasks["send"].options(id="a")
    first, second = await call.submit(1), await call.submit(1)
    await app.tasks["send"].options(id="b").submit(2)
    with pytest.raises(QueueFull):
        await app.tasks["send"].options(id="c").submit(3)

    assert (first.duplicate, second.duplicate) == (False, True)
    assert notes.calls == [
        *("submitting a", "submitted a", "ended 1 NoneType"),
        *("submitting a", "ended 1 NoneType"),
        *("submitting b", "submitted b", "ended 1 NoneType"),
        *("submitting c", "ended 1 QueueFull"),
    ]
    assert (await first.status()).headers == {"marked": "alone"}


@pytest.mark.parametrize("all_or_nothing", [False, True])
async def test_the_jobs_of_a_bulk_submit_are_prepared_together(
    app: App, notes: Notes, all_or_nothing: bool
) -> None:
    task = app.tasks["send"]
    jobs = await task.submit_many([(1,), (2,)], ids=["a", "b"], all_or_nothing=all_or_nothing)

    assert notes.calls == ["submitting 2", "submitted a", "submitted b", "ended 2 NoneType"]
    assert [(await job.status()).headers for job in jobs] == [{"marked": "bulk"}] * 2


async def test_unique_jobs_of_a_bulk_submit_are_prepared_together(app: App, notes: Notes) -> None:
    [first, again] = await app.tasks["send"].options(unique=True).submit_many([(1,), (1,)])

    assert (first.duplicate, again.duplicate) == (False, True)
    assert notes.calls == ["submitting 2", f"submitted {first.id}", "ended 2 NoneType"]


async def test_a_middleware_that_returns_too_few_jobs_is_refused(app: App, notes: Notes) -> None:
    notes.drops_jobs = True

    with pytest.raises(BadOption, match="submitting_many of Notes must return a list of as many jobs"):
        await app.tasks["send"].submit_many([(1,), (2,)], ids=["a", "b"])
    assert notes.calls == ["submitting 2", "ended 2 BadOption"]


async def test_an_error_after_a_submit_is_logged(
    app: App, notes: Notes, caplog: pytest.LogCaptureFixture
) -> None:
    notes.fails_at_end = True

    job = await app.tasks["send"].submit(1)

    assert (await job.status()).state == "queued"
    [line] = [record for record in caplog.records if record.getMessage() == "middleware failed"]
    assert vars(line)["method"] == "submit_ended"
