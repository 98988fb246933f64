"""Writes the reference pages of the guide from the code: `python -m tests.guide.reference`.

The texts are those of docstrings, help texts, settings and metrics, so a page is changed there.
`test_reference.py` fails while a page differs from the code.
"""

import ast
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry

from jsq.app import AppOptions
from jsq.cli import COMMANDS, load
from jsq.cli.options import COMMON_PARAMETERS
from jsq.cli.pages import command_pages, usage
from jsq.declaration import BatchOptions, TaskOptions
from jsq.guide.glossary import GLOSSARY
from jsq.hooks import AppHooksOptions
from jsq.model.options import JobOptions, SubmitOptions
from jsq.model.schedule import Recurrence, ScheduleOptions
from jsq.settings import Login, QueueSettings, SettingsSection, WorkerSettings
from jsq.telemetry.instruments import PrometheusInstruments
from jsq.telemetry.metrics import Metrics
from tests.guide.limits import LIMITS
from tests.guide.log_messages import COMPOSED, EXPLANATIONS
from tests.helpers.pages import GUIDE
from tests.helpers.repository import ROOT

GENERATED = "`python -m tests.guide.reference` writes this page from the code."

COMMAND_PAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "reference-submit": ("submitting and scheduling jobs", ("submit", "schedule")),
    "reference-job": ("finding and changing jobs", ("job",)),
    "reference-workflow": ("workflows", ("workflow",)),
    "reference-queue": ("queues and dead letters", ("queue", "dead")),
    "reference-worker": (
        "workers and operations",
        (
            *("dev", "demo", "worker", "worker ls", "events", "provision", "bench", "doctor", "sweep"),
            *("guide", "version"),
        ),
    ),
}
"""The commands of each reference page."""

OTHER_VARIABLES = {
    "JSQ_NAMESPACE": "the namespace [jsq]; read by `App()` and `Client()`, the login at the first use",
    "JSQ_TEST_URL": "the server of the tests that use the pytest fixtures [an embedded server]",
    "JSQ_TEST_NAMESPACE": "the namespace of the running test, also for `App(namespace=...)`",
    "JSQ_DEBUG": "`1` prints a traceback with each error of a command",
    "NO_COLOR": "`1` switches colors off",
    "NATS_CONTEXT": "the context of the `nats` command that is used if `JSQ_URL` is not set",
    "PAGER": "the program in which `jsq guide` shows a page [less]",
}

EXIT_CODES = {
    0: "success",
    1: "an error that has no code of its own; `jsq doctor` found an error",
    2: "the command, an option or a value is wrong",
    3: "the job failed, expired or was cancelled",
    4: "the login may not do this",
    5: "the job, queue, schedule or dead letter does not exist",
    6: "the id or key is taken, or the state does not allow the change",
    7: "NATS is out of reach, or did not confirm in time",
    124: "timed out; the job goes on",
    130: "interrupted by Ctrl-C",
    141: "the reader of the output has closed the pipe",
}


def reference_page(name: str) -> str:
    """The text of a reference page."""
    return "\n".join(PAGE_WRITERS[name]()) + "\n"


def prose(*parts: str) -> list[str]:
    """The lines of a paragraph."""
    return textwrap.wrap(" ".join(parts), 110, break_on_hyphens=False, break_long_words=False)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


# -- the overview ------------------------------------------------------------------------------------------


def overview() -> Iterator[str]:
    yield from ("# Reference: commands, environment, exit codes and limits", "")
    yield from prose(
        "This page lists all commands, environment variables, exit codes and limits, and leads to the other",
        "pages of the reference.",
        GENERATED,
    )
    yield ""
    yield "- [Options of tasks, submits and schedules](reference-options.md)"
    yield "- [Settings of queues, workers and logins](reference-settings.md)"
    yield "- [Metrics and log messages](reference-metrics.md)"
    yield from ("", "## Commands", "")
    pages = {name: page for page, (_, names) in COMMAND_PAGES.items() for name in names}
    rows = [(f"[`jsq {name}`]({pages[name]}.md)", text) for name, text in COMMANDS.items()]
    yield from table(("command", "purpose"), rows)
    yield from ("", "Every command has these options. They follow the name of the command.", "")
    yield from table(("option", "meaning"), common_options())
    yield ""
    yield from prose(
        "`jsq --version` prints the version. `jsq --install-completion` sets up the completion of the shell,",
        "and `jsq --show-completion` prints it.",
    )
    yield from ("", "## Environment variables", "")
    yield from table(("variable", "meaning"), sorted(environment_variables().items()))
    yield from ("", "## Exit codes", "")
    yield from table(("code", "meaning"), ((str(code), text) for code, text in EXIT_CODES.items()))
    yield from ("", "## Limits", "")
    yield from table(("of", "limit"), LIMITS)


def common_options() -> Iterator[tuple[str, str]]:
    wanted = {parameter.name for parameter in COMMON_PARAMETERS}
    [page] = (page for name, page in pages_of("version"))
    for parameter in page.params:
        if parameter.name in wanted:
            yield option_names(parameter), help_text(parameter)
    yield "`--help`, `-h`", "show the help page of the command"


def environment_variables() -> dict[str, str]:
    """Every variable that jsq reads, with its meaning."""
    found = dict(OTHER_VARIABLES)
    for name, field in Login.fields.items():
        found[f"JSQ_{name.upper()}"] = f"login: {field.description}"
    for command in COMMANDS:
        for path, page in pages_of(command):
            for parameter in page.params:
                if isinstance(parameter.envvar, str):
                    option = max(parameter.opts, key=len)
                    found[parameter.envvar] = f"the option `{option}` of `jsq {path}`"
    return {f"`{name}`": text for name, text in found.items()}


# -- options and settings ----------------------------------------------------------------------------------


def options_page() -> Iterator[str]:
    yield from ("# Reference: options of tasks, submits and schedules", "")
    yield from prose(
        "This page lists every option of `@app.task`, of a submit, of `App` and of a schedule.",
        "Durations are seconds,",
        'a `timedelta` or text such as `"5m"`; moments are `datetime`s with a time zone.',
        "A default is in brackets.",
        GENERATED,
    )
    yield from ("", "## Options of a task", "", "`@app.task(retries=5)`; see [tasks](tasks.md).", "")
    yield from table(("option", "meaning"), option_rows(TaskOptions))
    yield from ("", "`@app.batch_task` takes these options too; see [bulk](bulk.md).", "")
    yield from table(("option", "meaning"), option_rows(BatchOptions))
    yield from ("", "## Options of a submit", "")
    yield from ("`add.options(delay=60).submit(1, 2)`; see [scheduling](scheduling.md).", "")
    yield from table(("option", "meaning"), [*option_rows(JobOptions), *option_rows(SubmitOptions)])
    yield from ("", "## Options of an App", "", '`App(include=["shop.tasks"])`; see [layout](layout.md).', "")
    rows = [*option_rows(AppOptions), *option_rows(AppHooksOptions)]
    yield from table(("option", "meaning"), [row for row in rows if "AppHooksOptions" not in row[1]])
    yield from ("", "## Options of a schedule", "")
    yield from prose(
        "`app.schedule(name, task, every=60)`; see [scheduling](scheduling.md).",
        "A schedule also takes the options of a submit from `queue` to `slots`.",
    )
    yield ""
    yield from table(("option", "meaning"), [*option_rows(ScheduleOptions), *option_rows(Recurrence)])


_NAMED = re.compile(r"(?:(?<=^)|(?<=[.\]] ))((?:`\w+`(?:, | or ))*`\w+`): ")
"""The names of options at the start of a sentence that explains them."""


def option_rows(kind: type) -> list[tuple[str, str]]:
    """The options that the docstring of a `TypedDict` explains, each with the text."""
    paragraphs = [" ".join(part.split()) for part in (kind.__doc__ or "").split("\n\n")]
    parts = [_NAMED.split(part) for part in paragraphs]
    explained = [(part[number], part[number + 1]) for part in parts for number in range(1, len(part), 2)]
    return [(names, text.strip()) for names, text in explained]


def settings_page() -> Iterator[str]:
    yield from ("# Reference: settings of queues, workers and logins", "")
    yield from prose(
        "This page lists every setting of `app.queue`, of `jsq.WorkerSettings` and of `jsq.Login`, with its",
        "default. Durations are seconds.",
        GENERATED,
    )
    yield from ("", "## Settings of a queue", "")
    yield from ('`app.queue("mail", lease=60)`; see [queues](queues.md).', "")
    yield from table(("setting", "default", "meaning"), setting_rows(QueueSettings))
    yield from ("", "## Settings of a worker", "")
    yield from ("Options of [`jsq worker`](reference-worker.md) have the same names.", "")
    yield from table(("setting", "default", "meaning"), setting_rows(WorkerSettings))
    yield from ("", "## Settings of a login", "")
    yield from ("Each has an environment variable, such as `JSQ_URL`; see [security](security.md).", "")
    yield from table(("setting", "default", "meaning"), setting_rows(Login))


def setting_rows(section: type[SettingsSection]) -> Iterator[tuple[str, str, str]]:
    for name, field in section.fields.items():
        yield f"`{name}`", shown_default(field.default), field.description


def shown_default(default: object) -> str:
    if default in (None, "", {}):
        return ""
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


# -- commands ----------------------------------------------------------------------------------------------


def pages_of(command: str) -> list[tuple[str, Any]]:
    """The commands of a word, each with the words that lead to it."""
    found = load(command)
    if hasattr(found, "commands"):
        return [(" ".join(path), page) for path, page in command_pages(found, (command,))]
    return [(command, found)]


def commands_page(purpose: str, commands: Sequence[str]) -> Iterator[str]:
    yield from (f"# Reference: commands for {purpose}", "")
    yield from prose(
        f"This page lists every argument and option of {named(commands)}.",
        "There are also the [options of every command](reference.md#commands).",
        GENERATED,
    )
    for command in commands:
        for path, page in pages_of(command):
            own = own_parameters(page)
            arguments = [usage(one) for one in own if one.param_type_name == "argument"]
            yield from ("", f"## {' '.join(['jsq', path, *arguments])}", "")
            yield from prose(str(page.help).split("\n\n")[0])
            if own:
                yield ""
                yield from table(("option", "meaning"), ((option_names(one), help_text(one)) for one in own))


def own_parameters(page: Any) -> list[Any]:
    """The visible parameters of a command, without those of every command."""
    common = {parameter.name for parameter in COMMON_PARAMETERS}
    return [one for one in page.params if one.name not in common and not getattr(one, "hidden", False)]


def named(commands: Sequence[str]) -> str:
    quoted = [f"`jsq {command}`" for command in commands]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def option_names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar}`"
    names = [*sorted(parameter.opts, key=len, reverse=True), *parameter.secondary_opts]
    value = "" if getattr(parameter, "is_flag", False) else f" {parameter.metavar}"
    return f"`{names[0]}{value}`" + "".join(f", `{name}`" for name in names[1:])


def help_text(parameter: Any) -> str:
    return " ".join(str(parameter.help or "").split())


# -- metrics and log messages ------------------------------------------------------------------------------


def metrics_page() -> Iterator[str]:
    yield from ("# Reference: metrics and log messages", "")
    yield from prose(
        "This page lists every metric of a worker, and every log message from the level info on.",
        "Read it to write alerts, or to understand a log line.",
        GENERATED,
    )
    yield from ("", "## Metrics", "")
    yield from prose(
        "`jsq worker --http HOST:PORT` serves them at `/metrics`.",
        "`--metrics otel` records them with [OpenTelemetry](tracing.md#metrics) instead. Then their names",
        "begin with `jsq.` and have no unit.",
        "All workers of a queue report the same `jsq_queue_` numbers, so take their maximum.",
    )
    yield ""
    yield from table(("metric", "labels", "meaning"), metric_rows())
    yield from ("", "## Log messages", "")
    yield from prose(
        "Each line has the message and fields such as `job`, `task`, `queue` and `why`.",
        "The logger is `jsq` or one below it.",
    )
    yield ""
    rows = [
        (f"`{message}`", ", ".join(levels), EXPLANATIONS.get(message, ""))
        for message, levels in sorted(log_messages().items())
    ]
    yield from table(("message", "level", "meaning"), rows)


class ListingRegistry(CollectorRegistry):
    """A registry that lists its collectors."""

    def __init__(self) -> None:
        super().__init__()
        self.collectors: list[Any] = []

    def register(self, collector: Any) -> None:
        super().register(collector)
        self.collectors.append(collector)


def metric_rows() -> Iterator[tuple[str, str, str]]:
    registry = ListingRegistry()
    Metrics(PrometheusInstruments(registry))
    for collector in registry.collectors:
        [metric] = collector.describe()
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        labels = getattr(collector, "_labelnames")  # noqa: B009 -- no public name has them
        yield f"`{name}`", ", ".join(f"`{label}`" for label in labels), metric.documentation


LEVELS = ("info", "warning", "error", "exception", "critical")


def log_messages() -> Mapping[str, Sequence[str]]:
    """Every log message of the package from the level info on, with its levels."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "jsq").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="log"), attr=level),
                    args=[ast.Constant(value=str(message)), *_],
                ) if level in LEVELS:
                    found.setdefault(message, set()).add("error" if level == "exception" else level)
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="log"), attr="log"),
                    args=[_, ast.Constant(value=str(message)), *_],
                ):
                    found.setdefault(message, set())
    return {message: sorted(levels) or ["varies"] for message, levels in found.items()} | COMPOSED


# -- the glossary ------------------------------------------------------------------------------------------


def glossary_table() -> str:
    return "\n".join(table(("term", "meaning"), GLOSSARY.items())) + "\n"


def with_glossary(text: str) -> str:
    """The text of the page `concepts` with the glossary of the code."""
    before, heading, after = text.partition("## Glossary\n")
    intro, _, rows = after.partition("| term |")
    rest = re.sub(r"\A(?:.*\n)(?:\|.*\n)*", "", rows)
    return f"{before}{heading}{intro}{glossary_table()}{rest}"


PAGE_WRITERS: dict[str, Callable[[], Iterable[str]]] = {
    "reference": overview,
    "reference-options": options_page,
    "reference-settings": settings_page,
    "reference-metrics": metrics_page,
    **{name: partial(commands_page, *about) for name, about in COMMAND_PAGES.items()},
}
"""The function that gives the lines of each page."""


def main() -> None:
    for name in PAGE_WRITERS:
        (GUIDE / f"{name}.md").write_text(reference_page(name))
    concepts = GUIDE / "concepts.md"
    concepts.write_text(with_glossary(concepts.read_text()))


if __name__ == "__main__":
    main()
