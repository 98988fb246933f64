"""Flask: an extension that gives each job the application context of Flask.

A plain function runs in a thread or a child process. Its context is pushed and popped in that thread, so what
`flask.g` holds, such as a connection to SQLite, is closed where it was opened.
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jsq.app import App
from jsq.cli import run_command_line
from jsq.context import Context
from jsq.contrib.command import with_app
from jsq.declaration import find_location
from jsq.errors import BadOption, UsageError
from jsq.middleware import CallNext, Middleware

try:
    import click
    from flask import Flask
    from flask.cli import ScriptInfo
except ImportError:
    raise ImportError("jsq.contrib.flask needs one more package: pip install flask") from None

__all__ = ["Jsq"]

URL = "JSQ_URL"
"""The setting of a Flask application with the address of the server."""

FLASK_APP = "FLASK_APP"
"""The variable that names the application for the command `flask`."""


class Jsq:
    """The extension: `Jsq(flask_app, app)`, or `Jsq(app=app)` and its `init_app` in a factory.

    Each job of the App runs in an application context: `current_app` and `g` are there, and the functions of
    `teardown_appcontext` run at its end. `app` is the App; without one the extension makes it. An extension
    without a Flask application finds it in a worker as the command `flask` does: by `FLASK_APP`, or in
    `wsgi.py` or `app.py`.
    """

    def __init__(self, flask_app: Flask | None = None, app: App | None = None) -> None:
        self.app = App() if app is None else app
        self._flask_app: Flask | None = None
        registry = self.app.middleware
        if any(isinstance(one, FlaskContext) for one in registry.of_app):
            raise UsageError(f"{self.app!r} has an extension of Flask already: use one for each App")
        registry.of_app = (FlaskContext(self), *registry.of_app)
        if flask_app is None:
            self.app.on_start(self._load)
        else:
            self.init_app(flask_app)

    def init_app(self, flask_app: Flask) -> None:
        """Connect the extension with a Flask application, which a factory has made for example.

        The setting `JSQ_URL` is the address of the server, unless the App names one. Adds the command
        `flask jsq`. Raises `BadOption`.
        """
        url = flask_app.config.get(URL)
        if url is not None:
            if not isinstance(url, str):
                raise BadOption(URL, type(url).__name__, "must be text, such as nats://localhost:4222")
            self.app.client.connection.set_default_url(url)
        flask_app.extensions["jsq"] = self
        flask_app.cli.add_command(jsq_command)
        self._flask_app = flask_app

    @property
    def flask_app(self) -> Flask:
        """The Flask application. Raises `UsageError` if there is none."""
        if self._flask_app is None:
            self._load()
        assert self._flask_app is not None, "it was loaded"
        return self._flask_app

    def _load(self) -> None:
        """Find the Flask application, in a process that only loads the App of jsq."""
        if self._flask_app is not None:
            return
        info = ScriptInfo(os.environ.get(FLASK_APP), set_debug_flag=False)
        try:
            found = info.load_app()
        except click.ClickException as error:
            rule = "set FLASK_APP, or start the worker by `flask --app ... jsq worker`"
            raise UsageError(f"no Flask application for the jobs: {error.message} {rule}") from error
        self._flask_app = self._flask_app or found


class FlaskContext(Middleware):
    """Runs the function of each job in an application context of Flask."""

    def __init__(self, extension: Jsq) -> None:
        self._extension = extension

    async def around(self, ctx: Context, call: CallNext) -> Any:
        task = self._extension.app.known(ctx.task)
        if task is None or not task.is_async:
            return await call()
        with self._extension.flask_app.app_context():
            return await call()

    def around_sync(self, ctx: Context, call: Callable[[], Any]) -> Any:
        with self._extension.flask_app.app_context():
            return call()


# -- the command -------------------------------------------------------------------------------------------


@click.command(
    "jsq",
    short_help="Run the command line of jsq: flask jsq worker, flask jsq job ls.",
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def jsq_command(context: click.Context, words: Sequence[str]) -> None:
    """Run the command line of jsq, with the App and the server of the Flask application."""
    info = context.ensure_object(ScriptInfo)
    flask_app = info.load_app()
    extension: Jsq = flask_app.extensions["jsq"]
    if info.app_import_path:  # for the processes that a worker starts
        os.environ[FLASK_APP] = info.app_import_path
    if flask_app.config.get(URL):
        os.environ[URL] = flask_app.config[URL]
    sys.argv = ["jsq", *with_app(words, lambda: app_path(extension))]
    run_command_line()


def app_path(extension: Jsq) -> str:
    """The App as the command line names it, such as `shop.tasks:app`. Raises `UsageError`."""
    found = find_location(extension.app)
    if found is not None:
        return f"{found.module}:{found.name}"
    found = find_location(extension)
    if found is None:
        raise UsageError("no module has the App, nor its extension, under a name: assign one of them there")
    return f"{found.module}:{found.name}.app"
