"""The App of a Django project, made from its settings.

`JSQ` holds the options of the App. The `OPTIONS` of a task backend may name the server and the namespace
instead, so that a project that only uses `TASKS` needs no other setting.
"""

import contextlib
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Self

import django
from django.apps import apps
from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.utils.module_loading import import_string, module_has_submodule

from jsq.app import App
from jsq.contrib.django.connections import DatabaseConnections
from jsq.discovery import import_named_module
from jsq.errors import UsageError
from jsq.middleware import CurrentJob, Middleware
from jsq.task import AnyTask

ADDRESS_OPTIONS = ("url", "namespace")
"""The options of the App that the `OPTIONS` of a task backend may set too."""

TASKS_MODULE = "tasks"
"""The module of an installed app that holds its tasks."""

HAS_TASKS = django.VERSION[0] >= 6
"""Whether Django has tasks of its own."""

_lock = threading.RLock()
_apps: list[tuple[Mapping[str, Any], "DjangoApp"]] = []
"""The Apps of this process, by their options: one, unless tests change the settings."""


class DjangoApp(App):
    """The App of a Django project. Its workers know the tasks of jsq and of Django in the installed apps."""

    def load(self, *modules: str) -> Self:
        """Set up Django, then import `tasks.py` of each installed app, and the modules of `include`."""
        set_up()
        for config in apps.get_app_configs():
            if module_has_submodule(config.module, TASKS_MODULE):
                import_named_module(f"{config.name}.{TASKS_MODULE}")
        super().load(*modules)
        if HAS_TASKS:
            from jsq.contrib.django.running import declare_tasks

            with _lock:
                declare_tasks(self)
        return self

    def known(self, name: str) -> AnyTask | None:
        """A task by its name, or a Django task by its module path, if its module is imported already."""
        found = super().known(name)
        if found is None and HAS_TASKS:
            from jsq.contrib.django.running import declare_by_path

            with _lock:
                found = self.tasks.get(name) or declare_by_path(self, name)
        return found

    @property
    def queues(self) -> list[str]:
        """The queues of its tasks, and the `QUEUES` of its task backends."""
        named = {queue for params in task_backends().values() for queue in params.get("QUEUES", ())}
        return sorted({*super().queues, *named})


def project_app() -> DjangoApp:
    """The App of the project. Raises `ImproperlyConfigured`."""
    set_up()
    with _lock:
        options = app_options()
        for known, app in _apps:
            if known == options:
                return app
        _apps.append((options, build_app(options)))
        return _apps[-1][1]


def set_up() -> None:
    """Set up Django, in a process that does not: a worker, a child process, or a script."""
    if not apps.ready and not apps.loading:
        django.setup()


def build_app(options: Mapping[str, Any]) -> DjangoApp:
    """An App with these options. Raises `ImproperlyConfigured`."""
    given = dict(options)
    try:
        if isinstance(given.get("lifespan"), str):
            given["lifespan"] = import_string(given["lifespan"])
        own = [read_middleware_path(one) for one in given.pop("middleware", ())]
        return DjangoApp(**given, middleware=[DatabaseConnections(), CurrentJob(), *own])
    except (ImportError, TypeError, UsageError) as error:
        raise ImproperlyConfigured(f"the setting JSQ is wrong: {error}") from error


def read_middleware_path(written: Any) -> Any:
    """A middleware, from the path of its class or of an object."""
    found = import_string(written) if isinstance(written, str) else written
    return found() if isinstance(found, type) and issubclass(found, Middleware) else found


def app_options() -> dict[str, Any]:
    """The options of the App. Raises `ImproperlyConfigured`."""
    given = getattr(settings, "JSQ", {})
    if not isinstance(given, Mapping):
        raise ImproperlyConfigured("the setting JSQ must be a dictionary of the options of jsq.App")
    if not isinstance(given.get("middleware", ()), list | tuple):
        raise ImproperlyConfigured("the setting JSQ is wrong: middleware must be a list")
    found = dict(given)
    for alias, params in task_backends().items():
        for name in ADDRESS_OPTIONS:
            value = params.get("OPTIONS", {}).get(name)
            if value is None:
                continue
            if found.setdefault(name, value) != value:
                raise ImproperlyConfigured(
                    f"the {name} of TASKS[{alias!r}] must be that of JSQ and of the other backends: "
                    "a project has one App"
                )
    return found


def task_backends() -> dict[str, Mapping[str, Any]]:
    """The parameters of the task backends of the project that are a `JsqBackend`, by their aliases."""
    return dict(_task_backends()) if HAS_TASKS else {}


def _task_backends() -> Iterator[tuple[str, Mapping[str, Any]]]:
    for alias, params in getattr(settings, "TASKS", {}).items():
        with contextlib.suppress(ImportError, KeyError):
            if getattr(import_string(params["BACKEND"]), "runs_on_jsq", False):
                yield alias, params


def check_settings(**_: Any) -> list[Any]:
    """The check of the settings, for `manage.py check`."""
    try:
        build_app(app_options())
    except ImproperlyConfigured as error:
        return [checks.Error(str(error), id="jsq.E001")]
    return []


def forget_app(*, setting: str, **_: Any) -> None:
    """Look for the App again on its next use, if a test has changed the settings."""
    if setting in ("JSQ", "TASKS", "INSTALLED_APPS"):
        vars(sys.modules["jsq.contrib.django"]).pop("app", None)


setting_changed.connect(forget_app)
