"""jsq for Django projects: add `"jsq.contrib.django"` to `INSTALLED_APPS`.

`app` is the App of the project, made from its settings; outside of `manage.py`, its first use calls
`django.setup()`. `JsqBackend` runs the tasks of Django 6. `on_commit` submits when the transaction commits,
and `DatabaseConnections` closes old connections around jobs. The names are imported on first use, because
Django imports this package before its models can be. Type checkers read the same names from `__init__.pyi`.
"""

from importlib import import_module
from typing import Any

try:
    import django
except ImportError:
    raise ImportError("jsq.contrib.django needs one more package: pip install django") from None

NAME_MODULES = {
    "DatabaseConnections": "connections",
    "DjangoApp": "project",
    "JsqBackend": "backend",
    "JsqTask": "backend",
    "JsqTestRunner": "runner",
    "OnCommit": "commit",
    "job_urls": "status",
    "on_commit": "commit",
}
"""The modules of the names besides `app`."""

BACKEND_NAMES = ("JsqBackend", "JsqTask")


def __getattr__(name: str) -> Any:
    if name == "app":
        found = import_module(f"{__name__}.project").project_app()
    elif name not in NAME_MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    elif name in BACKEND_NAMES and django.VERSION[0] < 6:
        version = django.get_version()
        raise ImportError(f"{name} needs Django 6.0 or later, which has TASKS; this is Django {version}")
    else:
        found = getattr(import_module(f"{__name__}.{NAME_MODULES[name]}"), name)
    globals()[name] = found
    return found
