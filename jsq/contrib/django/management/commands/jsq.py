"""`manage.py jsq`: the command line of jsq, with the App and the server of the settings."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from jsq.cli import run_command_line
from jsq.contrib.command import with_app
from jsq.contrib.django.project import app_options, project_app
from jsq.settings import Login

PROJECT_APP = "jsq.contrib.django:app"


class Command(BaseCommand):
    """Passes its arguments to the command line of jsq, and adds the App of the project."""

    help = "Run the command line of jsq: manage.py jsq worker, manage.py jsq dev, manage.py jsq job ls, ..."
    requires_system_checks: Sequence[str] = ()

    def run_from_argv(self, argv: list[str]) -> None:
        """Run without Django's parser, which would read the options itself."""
        common = CommandParser(add_help=False, allow_abbrev=False)
        common.add_argument("--settings")  # Django has read these two already
        common.add_argument("--pythonpath")
        _, given = common.parse_known_args(argv[2:])
        try:
            self.handle(*given)
        except CommandError as error:
            self.stderr.write(f"jsq: error: {error}")
            sys.exit(2)

    def add_arguments(self, parser: CommandParser) -> None:
        """Take all arguments, for `call_command`."""
        parser.add_argument("args", nargs=argparse.REMAINDER)

    def handle(self, *args: Any, **_: Any) -> None:
        """Run the command line; it ends the process."""
        words = [str(one) for one in args]
        if words[:1] == ["dev"] and "url" in app_options():
            raise CommandError(
                "dev starts a server of its own, but the settings name one: leave out the url, or use worker"
            )
        export_address()
        export_module_path()
        sys.argv = ["jsq", *with_app(words, lambda: PROJECT_APP)]
        run_command_line()


def export_address() -> None:
    """Make the server and the namespace of the settings those of commands without an App."""
    options, client = app_options(), project_app().client
    if "url" in options:
        login = options["url"] if isinstance(options["url"], Login) else client.login
        values = {f"JSQ_{name.upper()}": getattr(login, name) for name in Login.fields}
        os.environ.update({name: str(value) for name, value in values.items() if value})
    if "namespace" in options:
        os.environ["JSQ_NAMESPACE"] = client.namespace


def export_module_path() -> None:
    """Let worker processes find the modules beside manage.py, wherever that was started."""
    folder, known = sys.path[0], os.environ.get("PYTHONPATH", "")
    if folder and Path(folder) != Path.cwd():
        os.environ["PYTHONPATH"] = os.pathsep.join(part for part in (folder, known) if part)
