"""`jsq worker`: run the jobs of an app's queues."""

import asyncio
import contextlib
import functools
import gc
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from jsq.cli.errors import print_error
from jsq.cli.loop import run_on_loop
from jsq.cli.options import CommonOptions, command
from jsq.cli.printing import Form
from jsq.cli.signals import on_worker_signals, thread_stacks_on
from jsq.cli.styles import has_colors
from jsq.cli.submit_options import duration

STUCK_SECONDS = 5.0
"""Seconds after its stop in which a worker must end, even if a thread or a task never ends."""

LOOP_SILENT_SECONDS = 10.0
"""Seconds without a turn of the event loop after which /livez fails."""

METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The variable of prometheus_client for the folder in which worker processes share their metrics."""


def variable(field: str, text: str, *names: str, metavar: str | None = None) -> Any:
    """An option that an environment variable can set too: `group_writes` is JSQ_GROUP_WRITES."""
    return typer.Option(*names, metavar=metavar, help=text, envvar=f"JSQ_{field.upper()}", show_envvar=False)


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How each worker process runs; see `WorkerSettings`. Environment variables can set each option."""

    concurrency: Annotated[
        int,
        variable("concurrency", "jobs that each process runs at once", "--concurrency", "-c", metavar="N"),
    ] = 10
    prefetch: Annotated[int, variable("prefetch", "jobs that each process fetches ahead", metavar="N")] = 0
    grace: Annotated[float, duration("how long running jobs may go on at a stop", "JSQ_GRACE")] = 25.0
    strict: Annotated[
        bool, variable("strict", "start jobs of a later queue only while the earlier have none", "--strict")
    ] = False
    burst: Annotated[bool, variable("burst", "exit when no job can start", "--burst")] = False
    group_writes: Annotated[
        str, variable("group_writes", "write events in groups: auto, always or never", metavar="WHEN")
    ] = "auto"
    child_tasks: Annotated[
        int | None,
        variable("child_tasks", "process tasks after which a child process is replaced", metavar="N"),
    ] = None
    child_memory: Annotated[
        int | None, variable("child_memory", "memory above which a child process is replaced", metavar="MB")
    ] = None
    unknown_task_for: Annotated[
        float,
        duration("how long to snooze a job of an unknown task before it fails", "JSQ_UNKNOWN_TASK_FOR"),
    ] = 600.0
    sweep: Annotated[float, duration("time between sweeps; 0 disables them", "JSQ_SWEEP")] = 60.0
    max_jobs: Annotated[
        int | None,
        variable("max_jobs", "jobs after which a process stops; --processes replaces it", metavar="N"),
    ] = None
    max_idle: Annotated[
        float | None, duration("stop after so long without a job [never]", "JSQ_MAX_IDLE")
    ] = None

    @property
    def finite(self) -> bool:
        """Whether a worker process stops by itself when there is no work."""
        return self.burst or self.max_idle is not None

    def settings(self) -> Any:
        """The settings of a worker, checked. Raises `BadOption`."""
        from jsq.settings import WorkerSettings

        return WorkerSettings.read(**asdict(self))


@dataclass(frozen=True, slots=True)
class LogOptions:
    """How a worker logs."""

    log_format: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="text or json [text; json with -o json]")
    ] = None
    log_level: Annotated[
        str | None,
        typer.Option(
            "--log-level", "-l", metavar="LEVEL", help="debug, info, warning or error [info; debug with -v]"
        ),
    ] = None

    def shows_banner(self, common: CommonOptions) -> bool:
        """Whether a worker prints its banner: with logs as text that show its start."""
        return self._form(common) == "text" and (self.log_level or "info").lower() in ("debug", "info")

    def _form(self, common: CommonOptions) -> str:
        return self.log_format or ("json" if common.printer.form in (Form.JSON, Form.JSONL) else "text")

    def start(self, common: CommonOptions) -> None:
        """Log to stderr. Raises `BadOption`."""
        from jsq.telemetry.logging import log_to_stderr

        level = "debug" if common.verbose else "info"
        log_to_stderr(
            log_format_of(self._form(common)),
            log_level_of(self.log_level or level),
            colors=has_colors(sys.stderr),
        )


@dataclass(frozen=True, slots=True)
class MetricsOptions:
    """Where a worker serves its probes, and how it records its metrics."""

    http: Annotated[str, typer.Option(metavar="HOST:PORT", help="serve /metrics, /livez, /readyz")] = ""
    metrics: Annotated[
        str,
        variable(
            "metrics",
            "prometheus, for /metrics, or otel, for the meter provider of OpenTelemetry",
            "--metrics",
            metavar="LIBRARY",
        ),
    ] = "prometheus"

    def observer(self) -> tuple[Any, Any]:
        """The registry that this process serves, and the observer of its worker. Raises `BadOption`."""
        from jsq.errors import BadOption

        if self.metrics == "otel":
            return None, otel_metrics()
        if self.metrics != "prometheus":
            raise BadOption("metrics", self.metrics, "must be prometheus or otel")
        return prometheus_metrics(served=bool(self.http) or METRICS_FOLDER in os.environ)


@dataclass(frozen=True, slots=True)
class JobSource:
    """The queues that a worker serves, and the modules that it imports for their tasks."""

    queues: Annotated[
        str,
        typer.Option(
            "--queues",
            "-q",
            metavar="QUEUE,...",
            help="queues to serve: mail,default, or with weights, mail=3,default=1; all and mail-* match the "
            "queues on the server at the start [those of the App]",
        ),
    ] = ""
    include: Annotated[
        str,
        typer.Option(metavar="MODULE,...", help="import these modules too: shop.tasks,shop.mail.*"),
    ] = ""

    def load(self, common: CommonOptions, target: str) -> tuple[Any, list[str] | dict[str, int]]:
        """The App of the worker, and the chosen queues. Raises `UsageError`."""
        from jsq.cli.worker_queues import read_queues
        from jsq.settings import split_list

        chosen = read_queues(self.queues)
        return load_worker_app(common, target, chosen, split_list(self.include)), chosen


@command
def worker(
    common: CommonOptions,
    target: Annotated[
        str,
        typer.Argument(metavar="MODULE:APP", help="the App whose jobs to run, or a function that returns it"),
    ],
    *,
    source: JobSource,
    options: WorkerOptions,
    processes: Annotated[
        int, typer.Option(min=1, metavar="N", help="worker processes; one that dies is restarted")
    ] = 1,
    reload: Annotated[bool, typer.Option("--reload", help="restart when the code changes")] = False,
    probes: MetricsOptions,
    log: LogOptions,
    supervised: Annotated[int, typer.Option(hidden=True)] = -1,
) -> None:
    """Run jobs until stopped.

    At the first SIGTERM or Ctrl-C, the worker returns jobs that have not started, and lets running jobs
    finish within --grace. At a second one, it returns these too. No attempt is counted for a returned job.
    From SIGTSTP to SIGCONT it takes no more jobs. SIGUSR1 prints the stacks of the running jobs on stderr.

    Environment variables can set the options from --concurrency to --max-idle: JSQ_CONCURRENCY=50.

    \b
    jsq worker shop:app --concurrency 50 --processes 2 --log-format json
    jsq worker shop:app --queues mail=3,default=1 --http 127.0.0.1:9464
    jsq worker shop.jobs:create_app --burst
    """
    settings = options.settings()
    log.start(common)
    use_server(common)
    if supervised < 0 and (processes > 1 or reload):
        watched = Path.cwd() if reload else None
        command, finite = child_command(), options.finite
        sys.exit(
            asyncio.run(supervise(command, processes, options.grace, probes.http, watched, finite=finite))
        )
    app, chosen = source.load(common, target)
    banner = log.shows_banner(common)
    sys.exit(run_on_loop(run_worker(app, chosen, settings, probes, supervised, banner=banner)))


def use_server(common: CommonOptions) -> None:
    """Make the server and the namespace of the options the defaults of an App."""
    if common.server:
        os.environ["JSQ_URL"] = common.server
    if common.namespace:
        os.environ["JSQ_NAMESPACE"] = common.namespace


def check_server_options(common: CommonOptions, target: str, app: Any) -> None:
    """Raises `UsageError` if an App names a server or a namespace other than those of the options."""
    from jsq.errors import UsageError

    if common.server and app.client.login.url != common.server:
        raise UsageError(
            f"{target} connects to {app.client.login.shown}: leave out --server, or the url of App"
        )
    if common.namespace and app.namespace != common.namespace:
        raise UsageError(f"{target} is in namespace {app.namespace}: leave out --namespace, or that of App")


def settle_memory() -> None:
    """Exclude loaded modules from garbage collection, and collect less often.

    Reference counting frees the objects of a job. A full collection costs a tenth of a short job.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def log_format_of(text: str) -> Any:
    from jsq.errors import BadOption

    if text not in ("text", "json"):
        raise BadOption("log-format", text, "must be text or json")
    return text


def log_level_of(text: str) -> str:
    from jsq.errors import BadOption

    if text.lower() not in ("debug", "info", "warning", "error"):
        raise BadOption("log-level", text, "must be debug, info, warning or error")
    return text


def load_worker_app(
    common: CommonOptions, target: str, queues: list[str] | dict[str, int], include: list[str]
) -> Any:
    """The App of a worker, loaded without a running event loop: its module may use one of its own."""
    from jsq.cli.loading import check_has_tasks, load_app
    from jsq.cli.worker_queues import is_queue_pattern

    app = load_app(target, include)
    check_has_tasks(target, app)
    log_trace_ids()
    check_server_options(common, target, app)
    for queue in sorted(set(queues) - set(app.queues)):
        if not is_queue_pattern(queue):
            typer.echo(f"warning: no task or declaration of {target} names queue {queue}", err=True)
    return app


async def run_worker(
    app: Any,
    queues: list[str] | dict[str, int],
    settings: Any,
    metrics: MetricsOptions,
    supervised: int,
    *,
    banner: bool = False,
) -> int:
    """Run one worker in this process."""
    from jsq.cli.worker_queues import find_queues
    from jsq.errors import ForeignStream
    from jsq.worker import Worker
    from jsq.worker.supervisor import SPENT_EXIT_CODE, UNUSABLE_EXIT_CODE, report_to_supervisor

    registry, observer = metrics.observer()
    http = metrics.http if supervised < 0 else ""
    queues = await find_queues(app, queues, wait=not settings.burst)
    runner = Worker(app, queues=queues or None, settings=settings, observer=observer)
    settle_memory()
    stacks = thread_stacks_on(signal.SIGUSR1)
    with on_worker_signals(runner), stacks, serving_probes(http, registry, runner):
        running = asyncio.ensure_future(runner.run())
        shown = asyncio.ensure_future(show_banner(runner) if banner else asyncio.sleep(0))
        parent, code = None, 1
        if supervised >= 0:
            parent = asyncio.ensure_future(report_to_supervisor(supervised, runner.is_ready, runner.stop))
        try:
            await running
            code = SPENT_EXIT_CODE if supervised >= 0 and runner.spent else 0
        except ForeignStream as error:
            code = print_error(error)
            code = UNUSABLE_EXIT_CODE if supervised >= 0 else code
        finally:
            if parent is not None:
                parent.cancel()
            shown.cancel()
            await app.close()
            leave_soon(code)
    return code


async def show_banner(runner: Any) -> None:
    """Print the banner once the worker is ready; of several worker processes, one prints it."""
    from jsq.cli.banner import claim_banner, print_banner

    await runner.ready.wait()
    if claim_banner():
        print_banner(runner)


async def supervise(
    command: list[str],
    processes: int,
    grace: float,
    http: str,
    watched: Path | None,
    environment: dict[str, str] | None = None,
    *,
    finite: bool = False,
) -> int:
    """Run worker processes, restart those that die, and serve the sum of their metrics."""
    from jsq.cli.banner import BANNER_FILE
    from jsq.worker.supervisor import Supervisor, WorkerCommand

    check_watchfiles(watched)
    with tempfile.TemporaryDirectory(prefix="jsq-metrics-") as folder:
        variables = {**os.environ, **(environment or {}), **({METRICS_FOLDER: folder} if http else {})}
        if processes > 1:
            variables[BANNER_FILE] = str(Path(folder, "banner"))
        parent = Supervisor(
            WorkerCommand(command, variables, grace=grace, finite=finite),
            processes=processes,
            watched=watched,
            on_exit=functools.partial(forget_metrics, folder) if http else lambda pid: None,
        )
        with on_worker_signals(parent), summed_probes(http, folder, parent.alive, parent.ready):
            return await parent.run()


def forget_metrics(folder: str, pid: int) -> None:
    """Remove the gauges of a dead process from the sum."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(pid, path=folder)  # type: ignore[no-untyped-call]  # the library's


def child_command() -> list[str]:
    """The command of a worker process: this command without the options of its parent."""
    left: list[str] = []
    skip = False
    for word in sys.argv[1:]:
        if skip or word == "--reload" or word.startswith(("--processes=", "--http=")):
            skip = False
            continue
        if word in ("--processes", "--http"):
            skip = True
            continue
        left.append(word)
    return [sys.executable, "-m", "jsq", *left]


def check_watchfiles(watched: Path | None) -> None:
    from importlib.util import find_spec

    from jsq.errors import UsageError

    if watched is not None and find_spec("watchfiles") is None:
        raise UsageError("--reload needs the package watchfiles: pip install 'jsq[reload]'")


def prometheus_metrics(*, served: bool) -> tuple[Any, Any]:
    """The registry of this process and its observer; None for both if the metrics are not served."""
    if not served:
        return None, None
    from prometheus_client import CollectorRegistry

    from jsq.telemetry.instruments import PrometheusInstruments
    from jsq.telemetry.metrics import Metrics

    registry = CollectorRegistry()
    return registry, Metrics(PrometheusInstruments(registry))


def otel_metrics() -> Any:
    """The observer that records with OpenTelemetry. Raises `UsageError` if that is not installed."""
    from importlib.util import find_spec

    from jsq.errors import UsageError

    if find_spec("opentelemetry") is None:
        raise UsageError("--metrics otel needs the package opentelemetry-api: pip install 'jsq[otel]'")
    from jsq.telemetry.metrics import Metrics
    from jsq.telemetry.otel_instruments import OtelInstruments

    return Metrics(OtelInstruments())


def log_trace_ids() -> None:
    """Add the trace of the active span to log lines, if the App uses OpenTelemetry."""
    if "opentelemetry.trace" in sys.modules:
        from jsq.telemetry.trace_ids import add_trace_ids

        add_trace_ids()


@contextlib.contextmanager
def serving_probes(http: str, registry: Any, runner: Any) -> Iterator[None]:
    """Serve the metrics and probes of one worker, if there is an address."""
    if not http:
        yield
        return
    from prometheus_client import CollectorRegistry

    from jsq.telemetry.probes import Probes

    with Probes(
        http,
        registry or CollectorRegistry(),
        alive=lambda: time.monotonic() - runner.beaten < LOOP_SILENT_SECONDS,
        ready=runner.is_ready,
    ) as served:
        typer.echo(f"metrics and probes at http://{served.address}", err=True)
        yield


@contextlib.contextmanager
def summed_probes(
    http: str, folder: str, alive: Callable[[], bool], ready: Callable[[], bool]
) -> Iterator[None]:
    """Serve the sum of the metrics of all worker processes, if there is an address."""
    if not http:
        yield
        return
    from prometheus_client import CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector

    from jsq.telemetry.probes import Probes

    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=folder)  # type: ignore[no-untyped-call]  # the library's
    with Probes(http, registry, alive=alive, ready=ready) as served:
        typer.echo(f"metrics and probes at http://{served.address}", err=True)
        yield


def leave_soon(code: int) -> None:
    """End the process soon, even if a thread, or a task that ignores its cancellation, never ends."""
    timer = threading.Timer(STUCK_SECONDS, os._exit, (code,))
    timer.daemon = True
    timer.start()
