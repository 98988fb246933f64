"""Dependencies that cannot work are refused where the task is declared."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import pytest

from jsq import INJECTED, App, BadOption, Context, Depends
from jsq.dependencies import plan_dependencies


def number() -> int:
    return 1


def of_nothing(dsn: str) -> str:
    return dsn


def unannotated(dsn):  # type: ignore[no-untyped-def]  # that is what is tested
    return dsn


def first(value: Annotated[int, Depends(lambda: second)]) -> int:
    return value


def second(value: int) -> int:
    return value


def third(value: Annotated[int, Depends(second)]) -> int:
    return value


second.__annotations__["value"] = Annotated[int, Depends(third)]


@contextlib.contextmanager
def managed() -> Iterator[int]:
    yield 1


def takes_nothing(a: Annotated[str, Depends(of_nothing)]) -> None: ...
def takes_unannotated(a: Annotated[str, Depends(unannotated)]) -> None: ...
def takes_circle(a: Annotated[int, Depends(second)]) -> None: ...
def takes_managed(a: Annotated[int, Depends(managed)]) -> None: ...
def takes_bare(a: Annotated[int, Depends]) -> None: ...
def takes_default(a: int = Depends(number)) -> None: ...  # type: ignore[assignment]  # as FastAPI once had it
def takes_by_position(a: Annotated[int, Depends(number)], /) -> None: ...
def takes_many(*a: Annotated[int, Depends(number)]) -> None: ...


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            takes_nothing,
            r"parameter dsn of of_nothing must be annotated with Depends or Context, or have a def",
        ),
        (
            takes_unannotated,
            r"parameter dsn of unannotated must .* got 'no annotation'; write dsn: Annotated\[",
        ),
        (takes_circle, r"must not form a circle, got 'second'; it is second -> third -> second"),
        (takes_managed, r"remove its decorator, such as @contextmanager"),
        (takes_bare, r"Depends must name a function"),
        (takes_default, r"parameter a must have Depends in its annotation"),
        (takes_by_position, r"parameter a must be a parameter that can be given by its name"),
        (takes_many, r"parameter a must be a parameter that can be given by its name"),
    ],
)
def test_a_dependency_that_cannot_work_is_refused_at_its_declaration(
    function: Callable[..., Any], message: str
) -> None:
    with pytest.raises(BadOption, match=message):
        App().task(function)


def test_a_provider_must_be_callable() -> None:
    with pytest.raises(BadOption, match="Depends must name a function"):
        Depends(5)  # type: ignore[arg-type]  # that is what is tested


class Service:
    def __init__(self, value: Annotated[int, Depends(number)], ctx: Context, size: int = 3) -> None:
        self.value = value


class Maker:
    async def __call__(self, ctx: Context) -> int:
        return ctx.attempt


def scaled(factor: int, value: Annotated[int, Depends(number)]) -> int:
    return factor * value


def test_classes_callable_objects_and_partial_functions_are_providers() -> None:
    def work(
        a: Annotated[Service, Depends(Service)],
        b: Annotated[int, Depends(Maker())],
        c: Annotated[int, Depends(functools.partial(scaled, 2))],
    ) -> None: ...

    plan = plan_dependencies(work)

    assert plan is not None
    assert [(one.kind, one.early) for one in plan.provisions] == [
        ("function", False),
        ("function", False),
        ("coroutine", True),
        ("function", False),
    ]
    assert plan.parameters == (("a", 1), ("b", 2), ("c", 3))


One = Annotated[int, Depends(number)]


def last(a: int, one: One = INJECTED, **more: int) -> object:
    return a, one, more


def only_by_name(a: int, *more: int, one: One = INJECTED) -> object:
    return a, more, one


def before_others(one: One, a: int, b: int = 0) -> object:
    return one, a, b


def before_many(a: int, one: One, *more: int) -> object:
    return a, one, more


def around_others(one: One, a: int, two: One, b: int, three: One = INJECTED) -> object:
    return one, a, two, b, three


@pytest.mark.parametrize(
    ("function", "args", "named", "result"),
    [
        (last, [1], {}, (1, 0, {})),
        (last, [], {"a": 1, "b": 2}, (1, 0, {"b": 2})),
        (only_by_name, [1, 2], {}, (1, (2,), 0)),
        (before_others, [1, 2], {}, (0, 1, 2)),
        (before_others, [1], {"b": 2}, (0, 1, 2)),
        (before_others, [], {"a": 1}, (0, 1, 0)),
        (before_many, [1, 2, 3], {}, (1, 0, (2, 3))),
        (before_many, [1], {}, (1, 0, ())),
        (before_many, [], {"a": 1}, (1, 0, ())),
        (around_others, [1, 2], {}, (0, 1, 0, 2, 0)),
        (around_others, [1], {"b": 2}, (0, 1, 0, 2, 0)),
        (around_others, [], {"a": 1, "b": 2}, (0, 1, 0, 2, 0)),
    ],
)
def test_a_plan_completes_the_arguments_of_a_call(
    function: Callable[..., object], args: list[Any], named: dict[str, Any], result: object
) -> None:
    plan = plan_dependencies(function)
    assert plan is not None
    provided = dict.fromkeys(plan.names, 0)

    complete = plan.complete(args, named, provided)

    assert function(*complete[0], **complete[1]) == result
    assert provided.keys() == plan.names


def test_a_direct_call_gives_the_dependencies_itself() -> None:
    app = App()

    @app.task
    def work(word: str, value: Annotated[int, Depends(number)] = INJECTED) -> int:
        return len(word) + value

    assert work("ab", value=3) == 5
    with pytest.raises(AttributeError, match="jsq provides its value when a worker runs the job"):
        INJECTED.execute("SELECT 1")


def test_a_process_task_with_hooks_must_be_found_by_its_name() -> None:
    app = App()
    app.task(executor="process")(scaled_task)

    with pytest.raises(BadOption, match="dependencies of scaled_task must be found by a child process"):
        app.check()


def scaled_task(value: Annotated[int, Depends(number)] = INJECTED) -> int:
    return value
