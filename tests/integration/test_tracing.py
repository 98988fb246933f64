"""The spans of submits and attempts: their parents, links and attributes."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from opentelemetry import baggage
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import attach, detach
from opentelemetry.propagate import set_global_textmap
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import messaging_attributes
from opentelemetry.trace import NoOpTracerProvider, SpanKind, StatusCode, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from jsq import App, Client, Context, QueueFull, Retry, Snooze
from jsq.server import EmbeddedServer
from jsq.telemetry.tracing import ATTEMPT_HEADER, Tracing
from tests.helpers.conditions import Until
from tests.helpers.workers import Working


@dataclass(frozen=True)
class Traced:
    """The spans that this process has ended."""

    provider: TracerProvider
    exporter: InMemorySpanExporter

    def named(self, name: str) -> list[ReadableSpan]:
        """The spans of a name, in the order of their starts."""
        found = (span for span in self.exporter.get_finished_spans() if span.name == name)
        return sorted(found, key=lambda span: span.start_time or 0)

    def one(self, name: str) -> ReadableSpan:
        [found] = self.named(name)
        return found


@pytest.fixture
def traced() -> Traced:
    provider, exporter = TracerProvider(shutdown_on_exit=False), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Traced(provider, exporter)


@pytest.fixture
async def app(server: EmbeddedServer, namespace: str, traced: Traced) -> AsyncIterator[App]:
    async with App(server.url, namespace=namespace, middleware=[Tracing(traced.provider)]) as app:
        yield app


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def parent_of(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent is not None else None


def links_of(span: ReadableSpan) -> list[int]:
    return [link.context.span_id for link in span.links]


def about(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def test_the_spans_of_a_job_follow_the_conventions_for_messaging(
    app: App, working: Working, traced: Traced
) -> None:
    @app.task(queue="mail")
    async def send() -> int:
        return get_current_span().get_span_context().span_id

    async with working() as worker:
        with traced.provider.get_tracer("test").start_as_current_span("request") as request:
            job = await send.submit()
        inside = await job.result(10)

    sent, run, settled = traced.one("send mail"), traced.one("process send"), traced.one("settle mail")
    assert [span.kind for span in (sent, run, settled)] == [
        SpanKind.PRODUCER,
        SpanKind.CONSUMER,
        SpanKind.CLIENT,
    ]
    assert parent_of(sent) == request.get_span_context().span_id
    assert (parent_of(run), parent_of(settled), id_of(run)) == (id_of(sent), id_of(run), inside)
    common = {
        "messaging.system": "jsq",
        "messaging.destination.name": "mail",
        "messaging.message.id": job.id,
        "jsq.task": "send",
    }
    kinds = {name: {f"messaging.operation.{one}": name for one in ("name", "type")} for name in OPERATIONS}
    assert about(sent) == common | kinds["send"]
    waited = about(run)["jsq.waited"]
    run_only = {"jsq.attempt": 1, "messaging.client.id": worker.name, "jsq.waited": waited}
    assert about(run) == common | kinds["process"] | run_only
    assert 0 <= waited < 10
    assert about(settled) == common | kinds["settle"] | {"jsq.outcome": "succeeded"}
    assert run.end_time is not None
    assert settled.start_time is not None
    assert 0 <= settled.start_time - run.end_time < 1_000_000_000
    known = {value for name, value in vars(messaging_attributes).items() if name.startswith("MESSAGING_")}
    used = {name for span in (sent, run, settled) for name in about(span)}
    assert {name for name in used if name.startswith("messaging.")} <= known


OPERATIONS = [one.value for one in messaging_attributes.MessagingOperationTypeValues]


async def test_each_attempt_has_the_submit_as_its_parent_and_links_to_the_one_before(
    app: App, working: Working, traced: Traced
) -> None:
    @app.task(retries=2, backoff="none")
    def flaky(ctx: Context) -> int:
        if ctx.attempt < 3:
            raise ValueError("not yet")
        return get_current_span().get_span_context().span_id

    async with working():
        job = await flaky.submit()
        inside = await job.result(10)
        assert (await job.status()).headers.keys() == {"traceparent", ATTEMPT_HEADER}

    first, second, third = traced.named("process flaky")
    sent = id_of(traced.one("send default"))
    assert [parent_of(span) for span in (first, second, third)] == [sent, sent, sent]
    assert [links_of(span) for span in (first, second, third)] == [[], [id_of(first)], [id_of(second)]]
    assert [about(span).get("error.type") for span in (first, second, third)] == ["ValueError"] * 2 + [None]
    assert [len(span.events) for span in (first, second, third)] == [1, 1, 0]
    assert (first.status.status_code, third.status.status_code) == (StatusCode.ERROR, StatusCode.UNSET)
    assert id_of(third) == inside
    settled = traced.named("settle default")
    assert [parent_of(span) for span in settled] == [id_of(span) for span in (first, second, third)]
    assert [about(span)["jsq.outcome"] for span in settled] == ["retrying", "retrying", "succeeded"]
    assert len({span.context.trace_id for span in traced.exporter.get_finished_spans() if span.context}) == 1


async def test_a_snooze_is_no_error_and_a_requested_retry_is_one(
    app: App, working: Working, traced: Traced
) -> None:
    @app.task(retries=1, backoff="none")
    async def later(ctx: Context) -> None:
        if not ctx.headers.get(ATTEMPT_HEADER):
            raise AssertionError("this attempt is in the headers")
        if len(traced.named("process later")) == 0:
            raise Snooze(0)
        if ctx.attempt == 1:
            raise Retry(delay=0)

    async with working():
        await (await later.submit()).result(10)

    snoozed, retried, last = traced.named("process later")
    assert [about(span).get("error.type") for span in (snoozed, retried, last)] == [None, "Retry", None]
    assert links_of(retried) == [id_of(snoozed)]


async def test_a_submit_outside_of_a_span_continues_the_trace_of_its_headers(
    app: App, traced: Traced
) -> None:
    @app.task
    async def send() -> None: ...

    parent = f"00-{10:032x}-{11:016x}-01"
    job = await send.options(headers={"traceparent": parent, "tenant": "t7"}).submit()

    sent = traced.one("send default")
    assert parent_of(sent) == 11
    headers = (await job.status()).headers
    assert headers == {"traceparent": f"00-{10:032x}-{id_of(sent):016x}-01", "tenant": "t7"}


async def test_the_span_and_the_baggage_of_a_blocking_submit_reach_the_task(
    app: App, working: Working, traced: Traced
) -> None:
    @app.task
    async def tenant() -> str:
        return str(baggage.get_baggage("tenant"))

    token = attach(baggage.set_baggage("tenant", "t7"))
    try:
        async with working():
            assert await (await tenant.submit()).result(10) == "t7"
    finally:
        detach(token)


async def test_without_a_provider_nothing_is_recorded_and_no_header_is_added(
    server: EmbeddedServer, namespace: str
) -> None:
    async with App(server.url, namespace=namespace, middleware=[Tracing(NoOpTracerProvider())]) as app:

        @app.task
        async def send() -> None: ...

        assert (await (await send.submit()).status()).headers == {}


async def test_a_job_whose_headers_are_full_is_submitted_without_its_trace(app: App, traced: Traced) -> None:
    @app.task
    async def send() -> None: ...

    full = {f"h{number}": "x" for number in range(64)}
    job = await send.options(headers=full).submit()

    assert (await job.status()).headers == full
    assert traced.one("send default").end_time is not None


@pytest.mark.parametrize("all_or_nothing", [False, True])
async def test_a_bulk_submit_has_one_span_that_is_the_parent_of_all_attempts(
    app: App, working: Working, traced: Traced, all_or_nothing: bool
) -> None:
    @app.task
    async def double(number: int) -> int:
        return 2 * number

    async with working():
        jobs = await double.submit_many([(1,), (2,), (3,)], all_or_nothing=all_or_nothing)
        assert [await job.result(10) for job in jobs] == [2, 4, 6]

    sent = traced.one("send default")
    assert about(sent)["messaging.batch.message_count"] == 3
    assert "messaging.message.id" not in about(sent)
    runs = traced.named("process double")
    assert [parent_of(span) for span in runs] == [id_of(sent)] * 3
    assert {about(span)["messaging.message.id"] for span in runs} == {job.id for job in jobs}


async def test_the_spans_of_failed_submits_end_and_do_not_accumulate(
    app: App, client: Client, traced: Traced
) -> None:
    app.queue("tiny", max_jobs=1)

    @app.task(queue="tiny")
    async def send() -> None: ...

    await client.admin.provision(app.declared)
    await send.submit()
    with pytest.raises(QueueFull):
        await send.submit()

    ended = traced.named("send tiny")
    assert len(ended) == 2
    assert [about(span).get("error.type") for span in ended] == [None, "QueueFull"]


async def test_a_callback_is_in_the_trace_of_its_job_and_links_to_the_failed_attempt(
    app: App, working: Working, traced: Traced, until: Until
) -> None:
    @app.task
    async def report(failure: Any) -> None: ...

    @app.task(retries=0, on_dead="report")
    async def fails() -> None:
        raise ValueError("no")

    async with working():
        await fails.submit()
        await until(lambda: traced.named("process report"))

    reported = traced.one("process report")
    assert parent_of(reported) == id_of(traced.one("send default"))
    assert links_of(reported) == [id_of(traced.one("process fails"))]


async def test_a_batch_has_one_span_that_links_to_the_submits_of_its_jobs(
    app: App, working: Working, traced: Traced
) -> None:
    @app.batch_task(size=3, wait=5)
    async def index(numbers: list[int]) -> None: ...

    async with working(concurrency=3):
        jobs = [await index.submit(number) for number in range(2)] + [*await index.submit_many([(7,)])]
        for job in jobs:
            await job.result(10)

    run, sent = traced.one("process index"), traced.named("send default")
    assert about(run)["messaging.batch.message_count"] == 3
    assert "messaging.message.id" not in about(run)
    assert parent_of(run) == id_of(sent[0])
    assert sorted(links_of(run)) == sorted(id_of(span) for span in sent)


async def test_a_propagator_that_raises_fails_neither_a_submit_nor_a_job(
    app: App,
    working: Working,
    traced: Traced,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(TraceContextTextMapPropagator):
        def extract(self, *given: Any, **named: Any) -> Any:
            raise RuntimeError("no context")

        def inject(self, *given: Any, **named: Any) -> None:
            raise RuntimeError("no context")

    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    set_global_textmap(Broken())
    try:
        async with working():
            assert await (await add.submit(1, 2)).result(10) == 3
    finally:
        set_global_textmap(CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()]))

    lines = [record for record in caplog.records if record.getMessage() == "middleware failed"]
    assert [vars(record)["method"] for record in lines] == ["submitting", "around"]


async def test_an_exception_whose_text_raises_is_recorded_without_its_text(
    app: App, working: Working, traced: Traced
) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    @app.task(retries=0)
    async def mute() -> None:
        raise Mute

    async with working():
        assert (await (await mute.submit()).wait(10)).error.startswith("Mute")

    assert about(traced.one("process mute"))["error.type"].endswith("Mute")
