"""Routers, and where an App gets its tasks, their names and their queues from."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jsq import App, BadOption, Client, Failure, NotIncluded, Router, TaskExists, UnknownTask, UsageError
from jsq.client.client import target_of
from jsq.errors import JsqError
from jsq.model.routes import Routes, read_routes

apart = Router("apart", executor="process")


@apart.task
def compute() -> None: ...


def mail_router() -> Router:
    router = Router("mail", queue="mail", retries=7)

    @router.task(on_failure="mail.alert")
    async def send(to: str) -> str:
        return to

    @router.task(queue="urgent", name="warn")
    async def alert(failure: Failure) -> None: ...

    @router.batch_task(size=3)
    async def index(items: list[int]) -> None: ...

    @router.every("30s")
    @router.task
    async def poll() -> None: ...

    router.queue("mail", rate="10/s")
    return router


def test_an_app_gets_everything_of_a_router_with_its_prefix_and_its_defaults() -> None:
    app = App()

    app.include(mail_router())

    assert sorted(app.tasks) == ["mail.index", "mail.poll", "mail.send", "mail.warn"]
    send, warn = app.find("mail.send").declaration, app.find("mail.warn").declaration
    assert (send.queue, send.retry.retries, warn.queue) == ("mail", 7, "urgent")
    assert app.schedules["mail-poll"].job.queue == "mail"
    assert app.schedules["mail-poll"].declared == app.name
    assert str(app.declared["mail"].rate) == "10/s"
    assert app.queues == ["mail", "urgent"]


def test_a_router_in_a_router_has_both_prefixes_and_callbacks_follow() -> None:
    app, shop, mail = App(), Router("shop"), Router("mail")

    @mail.task
    async def alert(failure: Failure) -> None: ...

    @mail.task(on_failure=alert)
    async def send() -> None: ...

    @shop.task(on_dead=alert)
    async def bill() -> None: ...

    mail.schedule("nightly", send, cron="0 3 * * *")
    shop.include(mail)
    app.include(shop)

    assert sorted(app.tasks) == ["shop.bill", "shop.mail.alert", "shop.mail.send"]
    assert app.schedules["nightly"].job.task == "shop.mail.send"
    app.check()  # each callback is declared


def test_what_a_router_declares_after_it_was_included_reaches_the_app() -> None:
    app, shop, mail = App(), Router("shop"), Router("mail")
    app.include(shop)
    shop.include(mail)

    @mail.cron("* * * * *")
    async def send() -> None: ...

    assert (send.name, list(app.schedules)) == ("shop.mail.send", ["shop-mail-send"])
    assert app.find("shop.mail.send") is send


async def test_a_submit_before_the_router_is_included_names_what_to_do() -> None:
    router = mail_router()
    send = router.tasks["mail.send"]
    low = send.options(priority="low")

    for submit in (send.submit, low.submit):
        with pytest.raises(NotIncluded, match=r"the Router 'mail'.* call app.include\(router\)"):
            await submit("a@b.c")
    assert await send("a@b.c") == "a@b.c"  # a call needs no App


def test_names_clash_as_in_an_app() -> None:
    app, router = App(), mail_router()

    @app.task(aliases=["mail.send"])
    async def other() -> None: ...

    with pytest.raises(TaskExists, match=r"mail\.send"):
        app.include(router)
    assert (router.is_included, list(app.tasks)) == (False, ["other"])


def test_a_router_is_included_once_and_not_in_itself() -> None:
    router, outer = mail_router(), Router()
    outer.include(router)

    with pytest.raises(BadOption, match="must be included only once"):
        App().include(router)
    with pytest.raises(BadOption, match="must not include itself"):
        router.include(outer)


def test_a_queue_that_two_declare_in_different_ways_is_refused() -> None:
    app = App()
    app.queue("mail", rate="5/s")

    with pytest.raises(BadOption, match="must have the same settings"):
        app.include(mail_router())


@pytest.mark.parametrize("option", ["name", "aliases"])
def test_a_router_has_no_defaults_for_what_belongs_to_one_task(option: str) -> None:
    with pytest.raises(BadOption, match="an option of one task"):
        Router(**{option: "send"})  # type: ignore[arg-type]  # that is what is tested


# -- names and routes


def test_default_names_contain_the_module_if_the_app_wants_that() -> None:
    app, router = App(task_names="module"), Router()

    @app.task
    async def send() -> None: ...

    @app.task(name="bill")
    async def charge() -> None: ...

    @router.task
    async def ship() -> None: ...

    app.include(router)

    assert [send.name, charge.name, ship.name] == [f"{__name__}.send", "bill", f"{__name__}.ship"]


def test_the_first_route_that_matches_gives_the_queue_and_a_written_queue_wins() -> None:
    app = App(routes={"mail.*": "mail", "*.big": "big", "mail.bulk": "never"})
    router = Router("mail")
    submitters = []

    @router.task
    async def bulk() -> None: ...

    @router.task(queue="own")
    async def other() -> None: ...

    submitters.append(bulk.options(priority="high"))  # made before the App is known
    app.include(router)
    schedule = app.schedule("nightly", "video.big", cron="0 3 * * *")

    assert (bulk.declaration.queue, other.declaration.queue) == ("mail", "own")
    assert [one.target.queue for one in (bulk, *submitters)] == ["mail", "mail"]
    assert schedule.job.queue == "big"
    assert target_of("video.big", app.client.connection).queue == "big"
    assert target_of("video.big", Client().connection).queue == "default"
    assert app.queues == ["big", "mail", "own"]


@pytest.mark.parametrize("routes", [["mail"], {"mail *": "mail"}, {"": "mail"}, {3: "mail"}, {"mail": "a b"}])
def test_wrong_routes_are_refused(routes: object) -> None:
    with pytest.raises(JsqError):
        read_routes(routes)  # type: ignore[arg-type]  # that is what is tested


def test_no_routes_match_nothing() -> None:
    assert Routes().queue_of("send") is None


# -- modules


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package `layout_shop`, whose modules declare tasks."""
    package = tmp_path / "layout_shop"
    files = {
        "__init__.py": "",
        "queue.py": "from jsq import App\napp = App(include=['layout_shop.tasks', 'layout_shop.mail.*'])\n",
        "tasks.py": "from layout_shop.queue import app\n@app.task\ndef bill(): ...\n",
        "mail/__init__.py": "from jsq import Router\nrouter = Router('mail')\n",
        "mail/__main__.py": "raise SystemExit('not to be imported')\n",
        "mail/send.py": "from layout_shop.mail import router\n@router.task\ndef send(): ...\n",
        "mail/more/__init__.py": "",
        "mail/more/ads.py": "from jsq import Router\nads = Router('ads')\n@ads.task\ndef show(): ...\n",
        "broken.py": "import nothing_of_this_name\n",
        "plain.py": "from os.path import join\ndef add(a, b): return a + b\ndef _own(): ...\n",
    }
    for name, text in files.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == "layout_shop"]:
        del sys.modules[name]


@pytest.mark.usefixtures("shop")
def test_an_app_loads_the_modules_that_it_includes_and_the_routers_in_them() -> None:
    from layout_shop.queue import app  # type: ignore[import-not-found]

    assert isinstance(app, App)
    assert app.tasks == {}
    assert sorted(app.load().tasks) == ["ads.show", "bill", "mail.send"]
    assert sorted(app.load().tasks) == ["ads.show", "bill", "mail.send"]


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "layout_shop.broken",
            r"module layout_shop.broken cannot be imported: .*nothing_of_this_name.*line 1",
        ),
        ("layout_shop.none", r"no module is named layout_shop\.none"),
        ("layout_shop.none.*", r"no module is named layout_shop\.none"),
        ("layout_shop.m*x", r"no module matches layout_shop\.m\*x"),
        ("*.tasks", "must begin with the name of a package"),
    ],
)
def test_an_import_that_fails_is_one_line_with_the_name_of_the_module(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        App(include=[name]).load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"include": "shop"}, {"task_names": "class"}, {"allow_functions": ["f"]}]
)
def test_wrong_options_of_an_app_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(BadOption):
        App(**options)  # type: ignore[arg-type]  # that is what is tested


def test_an_option_that_an_app_lacks_is_refused_with_the_one_that_is_meant() -> None:
    with pytest.raises(BadOption, match="there is no option includes; is include meant"):
        App(includes=["shop"])  # type: ignore[call-arg]  # that is what is tested


# -- functions by reference


@pytest.mark.usefixtures("shop")
def test_a_function_that_the_app_allows_is_a_task_once_its_module_is_imported() -> None:
    app = App(allow_functions=["layout_shop.plain:*"])

    assert app.known("layout_shop.plain:add") is None  # a job imports no module
    app.load()

    assert app.find("layout_shop.plain:add")(1, 2) == 3
    assert app.find("layout_shop.plain:add") is app.find("layout_shop.plain:add")
    assert app.tasks == {}


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize("name", ["plain:join", "plain:_own", "plain:none", "tasks:bill", "plain:__name__"])
def test_a_function_that_is_not_allowed_is_an_unknown_task_with_the_reason(name: str) -> None:
    app = App(allow_functions=["layout_shop.plain:*"]).load()

    with pytest.raises(UnknownTask, match="is not allowed: App"):
        app.find(f"layout_shop.{name}")


def test_an_app_without_a_name_in_a_module_refuses_what_a_child_process_would_not_find() -> None:
    app = App(lifespan=lambda app: contextlib.nullcontext())
    app.include(apart)

    with pytest.raises(BadOption, match=r"lifespan of apart\.compute.* give it a name in a module"):
        app.check()
