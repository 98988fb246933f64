"""The command line of jsq inside that of a framework: `manage.py jsq`, `flask jsq`."""

from collections.abc import Callable, Sequence

APP_COMMANDS = ("worker", "dev", "provision")
"""The commands whose first argument is the App."""

APP_OPTION_COMMANDS = (("submit",), ("schedule", "add"))
"""The commands that take the App as an option."""


def with_app(words: Sequence[str], find_app: Callable[[], str]) -> list[str]:
    """The arguments of the command line, with the App in the form `module:app` where a command takes one."""
    if words[:1] and words[0] in APP_COMMANDS and tuple(words[1:2]) != ("ls",):
        return [words[0], find_app(), *words[1:]]
    for path in APP_OPTION_COMMANDS:
        if tuple(words[: len(path)]) == path and not {"--app", "-A"} & set(words):
            return [*path, "--app", find_app(), *words[len(path) :]]
    return list(words)
