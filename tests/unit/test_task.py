"""Declaring tasks, and the checks before a submit."""

import functools
import inspect
import pydoc
import typing
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import pytest

from jsq import App, BadArguments, BadName, BadOption, Client, Context, TaskExists, UnknownTask
from jsq.context import ContextLink
from jsq.declaration import takes_context
from jsq.model.job import Job
from jsq.model.retry import Backoff


@pytest.fixture
def app() -> App:  # these tests need no server, because nothing connects
    return App("nats://127.0.0.1:1")


@pytest.fixture
def client(app: App) -> Client:
    return app.client


def context(**named: Any) -> Context:
    return Context(
        Job("j1", "mail"), token=1, worker="w1", link=ContextLink(lambda *_: None, lambda *_: Future())
    )


def add(a: int, b: int = 2) -> int:
    """Add two numbers."""
    return a + b


# -- declare -------------------------------------------------------------------------------------------------


def test_a_task_can_be_called_like_its_function(app: App) -> None:
    task = app.task(add)

    assert task(1, b=5) == 6
    assert task.name == "add"
    assert task.__doc__ == "Add two numbers."
    assert task.__wrapped__ is add
    assert app.find("add") is task


async def test_a_task_of_a_coroutine_function_stays_a_coroutine_function(app: App) -> None:
    @app.task
    async def double(a: int) -> int:
        return a * 2

    assert await double(4) == 8
    assert double.is_async


def test_parentheses_may_be_left_out(app: App) -> None:
    assert app.task(add).declaration == App().task()(add).declaration


def test_a_context_that_is_not_the_first_parameter_is_refused(app: App) -> None:
    def late(a: int, ctx: Context) -> None: ...

    with pytest.raises(BadOption, match="must take the Context as its first parameter, got"):
        app.task(late)


@pytest.mark.parametrize(
    "kind", [Context | None, Annotated[Context, "injected"], Annotated[Context, 1] | None]
)
def test_a_context_may_be_optional_or_annotated(app: App, kind: Any) -> None:
    def task(ctx: Any, n: int) -> None: ...

    task.__annotations__["ctx"] = kind

    assert app.task(task).takes_context
    assert list(app.tasks["task"].signature.shape.parameters) == ["n"]


def test_a_context_that_cannot_be_passed_by_position_is_refused(app: App) -> None:
    def named(*, ctx: Context) -> None: ...
    def several(*ctx: Context) -> None: ...
    def late(n: int, ctx: Context | None = None) -> None: ...

    for function in (named, several, late):
        with pytest.raises(BadOption, match="must take the Context as its first parameter, got"):
            app.task(function)


class Shop:
    def sell(self, item: str) -> str:
        return item

    @classmethod
    def open(cls, day: str) -> str:
        return f"{cls.__name__} {day}"

    @staticmethod
    def price(item: str) -> int:
        return len(item)


def test_a_method_without_its_object_is_refused(app: App) -> None:
    for method in (Shop.sell, vars(Shop)["open"], vars(Shop)["open"].__func__):
        with pytest.raises(BadOption, match=r"must be a function, not a method, got .*Shop\."):
            app.task(method)


def test_a_method_of_an_object_and_a_static_method_are_tasks(app: App) -> None:
    assert app.task(Shop().sell)("tea") == "tea"
    assert app.task(Shop.open)("monday") == "Shop monday"
    assert app.task(vars(Shop)["price"])("tea") == 3
    assert list(app.tasks["sell"].signature.shape.parameters) == ["item"]


def test_a_method_of_an_object_is_refused_for_a_child_process(app: App) -> None:
    with pytest.raises(BadOption, match=r"a child process has no object for the method Shop\.sell"):
        app.task(executor="process")(Shop().sell)


# -- a task as a function ------------------------------------------------------------------------------------


async def work(n: int, *, by: int = 2) -> int:
    """Work for a while."""
    return n * by


class Worker:
    async def __call__(self, n: int) -> int:
        return n


def hidden(function: Any) -> Any:
    """A plain decorator, as many libraries have it."""

    @functools.wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        return function(*args, **named)

    return call


def test_inspect_sees_the_function_of_a_task(app: App) -> None:
    task, plain = app.task(work), app.task(add)

    assert inspect.signature(task) == inspect.signature(work)
    assert inspect.iscoroutinefunction(task)
    assert not inspect.iscoroutinefunction(plain)
    assert inspect.unwrap(task) is work
    assert typing.get_type_hints(task) == {"n": int, "by": int, "return": int}


def test_help_shows_the_signature_and_the_docstring_of_a_task(app: App) -> None:
    shown = pydoc.plain(pydoc.render_doc(app.task(name="work.hard")(work)))

    assert "async work(n: int, *, by: int = 2) -> int" in shown
    assert "Work for a while." in shown
    assert "submit_many" not in shown


def test_a_task_in_a_class_stays_the_task(app: App) -> None:
    class Jobs:
        work = app.task(work)

    assert Jobs.work is Jobs().work is app.tasks["work"]


def test_functions_that_return_coroutines_run_on_the_loop(app: App) -> None:
    functions: dict[str, Any] = {
        "partial": functools.partial(work, by=3),
        "object": Worker(),
        "function": work,
    }
    tasks = [app.task(name=name)(function) for name, function in functions.items()]

    assert all(task.is_async for task in tasks)
    assert all(inspect.iscoroutinefunction(task) for task in tasks)


def test_a_plain_wrapper_of_a_coroutine_function_runs_in_a_thread_or_where_it_is_asked_for(app: App) -> None:
    task, asked = app.task(hidden(work)), app.task(name="asked", executor="async")(hidden(work))

    assert (task.is_async, task.hides_coroutine) == (False, True)
    assert (asked.is_async, asked.hides_coroutine) == (True, False)
    with pytest.raises(BadOption, match="must be thread or process for a function that is not async def"):
        app.task(name="plain", executor="async")(add)


def test_a_task_above_its_schedule_is_refused_with_the_right_order(app: App) -> None:
    @app.every("1h")
    def tick() -> None: ...

    with pytest.raises(BadOption, match=r"put @app\.cron and @app\.every above @app\.task"):
        app.task(tick)


def test_a_task_may_take_the_context_first(app: App) -> None:
    @app.task
    def attempt(ctx: Context, a: int) -> int:
        return ctx.attempt + a

    assert attempt.takes_context
    assert list(attempt.signature.shape.parameters) == ["a"]
    assert attempt(context(), 5) == 6


def test_a_context_may_be_annotated_as_text() -> None:
    def task(ctx: "Context") -> None: ...

    assert takes_context(task)


def test_only_the_first_parameter_is_the_context() -> None:
    def none() -> None: ...
    def other(a: int) -> None: ...
    def unannotated(ctx): ...  # type: ignore[no-untyped-def]  # that is what is tested

    assert not takes_context(none)
    assert not takes_context(other)
    assert not takes_context(unannotated)


def test_a_task_keeps_its_declaration(app: App) -> None:
    task = app.task(
        name="mail.send",
        queue="mail",
        priority="high",
        retries=5,
        backoff=[1, 60],
        timeout=timedelta(minutes=1),
        keep_result=0,
        tags=["a"],
    )(add)

    kept = task.declaration
    assert (kept.name, kept.queue, kept.priority, kept.tags) == ("mail.send", "mail", "high", ("a",))
    assert (kept.retry.retries, kept.retry.backoff) == (5, Backoff(steps=(1, 60)))
    assert (kept.timeout, kept.keep_result) == (60.0, 0.0)


def test_an_app_names_the_queues_of_its_tasks_and_declarations(app: App) -> None:
    assert app.queues == ["default"]

    app.task(queue="mail")(add)
    app.queue("bulk", concurrency=2)

    assert app.queues == ["bulk", "mail"]


def test_two_tasks_of_one_name_are_refused(app: App) -> None:
    app.task(add)

    with pytest.raises(TaskExists, match="'add'"):
        app.task(add)
    assert app.task(name="add.again")(add).name == "add.again"


@pytest.mark.parametrize("name", ["os.system", "__import__", "subtract", "", "a b"])
def test_an_undeclared_task_is_unknown(app: App, name: str) -> None:
    app.task(add)

    with pytest.raises(UnknownTask):
        app.find(name)


@pytest.mark.parametrize(
    "written",
    [
        {"name": "a b"},
        {"queue": "a.b"},
        {"queue": "dead"},
        {"queue": ""},
        {"priority": "urgent"},
        {"priority": 99},
        {"retries": -1},
        {"backoff": "weekly"},
        {"backoff": [-1]},
        {"timeout": 0},
        {"timeout": "soon"},
        {"keep_result": -1},
        {"tags": [""]},
        {"tags": "urgent"},
    ],
    ids=str,
)
def test_an_invalid_declaration_is_refused_at_once(app: App, written: dict[str, Any]) -> None:
    with pytest.raises((BadName, BadOption)):
        app.task(**written)(add)


def rows() -> Iterator[int]:
    yield 1


async def later_rows() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    "function", [rows, later_rows, 5, min], ids=["generator", "async generator", "number", "builtin"]
)
def test_a_callable_that_cannot_run_as_a_job_is_refused(app: App, function: Any) -> None:
    with pytest.raises((BadOption, BadName)):
        app.task(function)


def test_a_function_without_a_name_of_its_own_needs_one(app: App) -> None:
    with pytest.raises(BadName, match="<lambda>"):
        app.task(lambda: None)

    assert app.task(name="nothing")(lambda: None)() is None


def test_a_partial_function_and_an_object_have_the_annotations_of_their_function(app: App) -> None:
    class Adder:
        def __call__(self, b: int) -> int:
            return b

    functions: list[Any] = [functools.partial(add, 1), Adder()]
    for number, function in enumerate(functions):
        task = app.task(name=f"add.{number}")(function)
        assert task.signature.pack(["5"], {}) == b'{"b":5}'
        with pytest.raises(BadArguments, match="b: Input should be a valid integer"):
            task.signature.pack(["five"], {})


def test_a_type_without_a_json_form_is_refused_at_the_declaration(app: App) -> None:
    class Opaque:
        pass

    def task(a: Opaque) -> None: ...

    with pytest.raises(BadOption, match="cannot be sent as JSON"):
        app.task(task)


@pytest.mark.parametrize(
    "settings", [{"name": "a.b"}, {"name": "q", "lease": 0}, {"name": "q", "replicas": 2}], ids=str
)
def test_an_invalid_queue_is_refused(app: App, settings: dict[str, Any]) -> None:
    with pytest.raises((BadName, BadOption)):
        app.queue(**settings)


# -- options -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written",
    [
        {"queue": "a.b"},
        {"queue": ""},
        {"priority": "urgent"},
        {"priority": ""},
        {"delay": -1},
        {"delay": float("nan")},
        {"delay": 10**12},
        {"at": datetime(2026, 1, 1)},
        {"at": datetime(9999, 1, 1, tzinfo=UTC)},
        {"delay": 1, "at": datetime(2026, 1, 1, tzinfo=UTC)},
        {"id": ""},
        {"id": "a\tb"},
        {"headers": {"Nats-TTL": "1s"}},
        {"headers": {"a": "b\r\nc"}},
        {"tags": "urgent"},
        {"retries": 10**9},
        {"backoff": []},
        {"timeout": 0},
        {"keep_result": -1},
    ],
    ids=str,
)
def test_invalid_options_are_refused_at_once(app: App, client: Client, written: dict[str, Any]) -> None:
    task = app.task(add)

    with pytest.raises((BadName, BadOption)):
        task.options(**written)
    with pytest.raises((BadName, BadOption)):
        client.task("any").options(**written)


# -- submit --------------------------------------------------------------------------------------------------


async def test_invalid_arguments_are_refused_before_a_connection_is_opened(app: App) -> None:
    task = app.task(add)

    with pytest.raises(BadArguments, match="add: missing a required argument: 'a'"):
        await task.submit()  # type: ignore[call-arg]  # that is what is tested
    with pytest.raises(BadArguments, match="add: a: Input should be a valid integer"):
        await task.options(delay=1).submit("one")  # type: ignore[arg-type]  # that is what is tested


def test_the_blocking_submit_refuses_invalid_arguments_too(app: App) -> None:
    task = app.task(add)

    with pytest.raises(BadArguments):
        task.delay("one")  # type: ignore[arg-type]  # that is what is tested


async def test_a_submit_by_name_checks_names_and_json_values(client: Client) -> None:
    with pytest.raises(BadArguments, match=r"argument 1 \(set\)"):
        await client.task("add").submit({1})
    with pytest.raises(BadName, match="task name must"):
        await client.task("add it").submit(1)


def test_a_task_has_the_names_of_its_function_and_an_app_describes_itself() -> None:
    app = App(name="shop", namespace="test")

    @app.task
    def send() -> None:
        """Send it."""

    assert (send.__module__, send.__name__, send.__doc__) == (__name__, "send", "Send it.")
    assert send.__qualname__.endswith("<locals>.send")
    assert repr(app) == "<App 'shop' in namespace 'test': 1 task>"
