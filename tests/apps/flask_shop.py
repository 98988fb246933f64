"""A Flask application and its tasks in one module, and the same by a factory."""

import threading
from typing import Any

from flask import Flask, current_app, g

from jsq import App, Context
from jsq.contrib.flask import Jsq

app = App()
flask_app = Flask("flask_shop")
flask_app.config["GREETING"] = "hello"
Jsq(flask_app, app)

torn_down: list[Any] = []
"""The values of `g` at the end of each context, with the thread."""


@flask_app.teardown_appcontext
def note_end(error: BaseException | None) -> None:
    torn_down.append((g.pop("value", None), threading.get_ident(), error))


@app.task(retries=0)
def greet(name: str, fails: bool = False) -> tuple[str, int]:
    g.value = name
    if fails:
        raise ValueError(name)
    return f"{current_app.config['GREETING']} {name}", threading.get_ident()


@app.task
async def greet_on_loop(name: str) -> str:
    g.value = name
    return f"{current_app.config['GREETING']} {name}"


@app.task(executor="process")
def greet_in_child(ctx: Context, name: str) -> str:
    return f"{current_app.config['GREETING']} {name}"


@app.batch_task(size=2, wait=0.05)
def greet_all(names: list[str]) -> list[str]:
    g.value = ",".join(sorted(names))
    return [f"{current_app.config['GREETING']} {name}" for name in names]


@flask_app.post("/greet/<name>")
def start(name: str) -> str:
    return greet.delay(name).id


factory_app = App()
extension = Jsq(app=factory_app)


@factory_app.task
def name_app() -> str:
    return current_app.name


@factory_app.task(executor="process")
def name_app_in_child() -> str:
    return current_app.name


def create_app() -> Flask:
    """A factory of an application, with settings from variables such as FLASK_JSQ_URL."""
    made = Flask("made_by_factory")
    made.config.from_prefixed_env()
    extension.init_app(made)
    return made
