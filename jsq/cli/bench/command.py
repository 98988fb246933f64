"""`jsq bench`: measure jsq on this machine, beside a baseline that sends the same messages."""

import contextlib
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from typing import Annotated, Any

import typer

import jsq
from jsq.cli.bench.workloads import WORKLOADS, Figures, Plan, Result, measure
from jsq.cli.loop import loop_factory, run_on_loop
from jsq.cli.options import command
from jsq.cli.printing import Form, print_message
from jsq.cli.session import Session
from jsq.errors import BadOption, UsageError
from jsq.settings import Login, WorkerSettings

BENCH_COLUMNS = (
    *("workload", "payload", "jsq", "floor", "ratio", "client_cpu", "worker_cpu", "server_cpu"),
    *("worker_mb", "server_mb"),
)


@command
def bench(
    session: Session,
    workloads: Annotated[
        list[str] | None, typer.Argument(metavar="WORKLOAD", help=f"some of: {', '.join(WORKLOADS)}")
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=10, metavar="N", help="jobs of submit, bulk, drain and mixed")
    ] = 10_000,
    samples: Annotated[int, typer.Option(min=5, help="jobs of latency and roundtrip")] = 200,
    payload: Annotated[str, typer.Option(metavar="BYTES,...", help="bytes of a job's argument")] = "16",
    concurrency: Annotated[int, typer.Option(help="jobs that each process runs at once")] = 100,
    processes: Annotated[int, typer.Option(min=1, help="worker processes")] = 1,
    storage: Annotated[str, typer.Option(help="file or memory")] = "file",
    replicas: Annotated[int, typer.Option(help="1, 3 or 5, if --server is a cluster")] = 1,
    sync_interval: Annotated[
        str, typer.Option(help="when the started server syncs to disk: always, 1s, ...")
    ] = "1s",
    group_writes: Annotated[
        str, typer.Option(metavar="WHEN", help="write events in groups: auto, always or never")
    ] = "auto",
) -> None:
    """Measure jsq on a server that is started for this, or on that of --server.

    The column floor has the figure of a baseline: a bare loop that sends the same messages, extends no lease,
    checks nothing and stops at the first error. RATIO is the rate of jsq, or its median latency, divided by
    that of the baseline. CPU is in seconds for 1,000 jobs, memory in MiB. Each run has its own namespace,
    which is removed at its end.

    submit sends jobs one by one, and bulk sends all in one submit_many. The jobs of drain do nothing, those
    of mixed wait for 10 ms. The latency is measured from a submit to the start of its job, the roundtrip to
    its result.

    \b
    jsq bench submit drain --jobs 20000
    jsq bench latency -o json
    """
    names = workloads or list(WORKLOADS)
    for name in names:
        if name not in WORKLOADS:
            raise BadOption("workload", name, f"must be one of {', '.join(WORKLOADS)}")
    WorkerSettings.read(concurrency=concurrency, group_writes=group_writes)
    plans = [
        Plan(jobs, samples, size, concurrency, processes, storage, replicas, group_writes)  # type: ignore[arg-type]  # read above
        for size in sizes(payload)
    ]
    with bench_server(session, sync_interval) as (login, pid):
        print_message(machine())
        results = run_on_loop(all_of(names, plans, login, pid))
    show(session, results, plans[0], sync_interval if pid else "as --server has it")


async def all_of(names: list[str], plans: list[Plan], login: Login, pid: int | None) -> list[Result]:
    results = []
    for plan in plans:
        for name in names:
            result = await measure(name, plan, login, pid)
            print_message(
                f"{name}, {plan.payload:,} bytes: {figure(result.figures)}, floor {figure(result.floor)}"
            )
            results.append(result)
    return results


@contextlib.contextmanager
def bench_server(session: Session, sync_interval: str) -> Iterator[tuple[Login, int | None]]:
    """The login of --server; or that of a server that runs until the block ends, with its process id."""
    if session.server:
        yield session.client().login, None
        return
    from jsq.server import EmbeddedServer

    with EmbeddedServer(sync_interval=sync_interval) as server:
        yield Login(url=server.url), server.pid


def sizes(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--payload {text!r}: write numbers of bytes, joined by commas") from None
    for size in found:
        if not 0 <= size <= 1_000_000:
            raise BadOption("payload", size, "must be numbers from 0 to 1,000,000")
    return found


def show(session: Session, results: list[Result], plan: Plan, sync_interval: str) -> None:
    rows: list[dict[str, Any]] = [
        {
            "workload": result.workload,
            "payload": result.payload,
            "jsq": figure(result.figures),
            "floor": figure(result.floor),
            "ratio": result.ratio,
            "client_cpu": result.figures.client_cpu,
            "worker_cpu": result.figures.worker_cpu,
            "server_cpu": result.figures.server_cpu,
            "worker_mb": result.figures.worker_mb,
            "server_mb": result.figures.server_mb,
        }
        for result in results
    ]
    if session.printer.shows_tables or session.printer.form is Form.NAME:
        session.printer.all(rows, BENCH_COLUMNS, name="workload")
        return
    known = {"machine": machine(), "sync_interval": sync_interval, "settings": plan, "results": results}
    session.printer.one(known)


def figure(found: Figures) -> str:
    """A rate, or latencies, as text."""
    if found.per_second is not None:
        return f"{found.per_second:,.0f}/s"
    return f"p50 {found.p50_ms} ms, p99 {found.p99_ms} ms"


def machine() -> str:
    """The versions and the machine of a measurement."""
    loop = "uvloop" if loop_factory() is not None else "asyncio"
    versions = f"jsq {jsq.__version__}, Python {platform.python_version()} ({loop})"
    nats = importlib.metadata.version("nats-py")
    return f"{versions}, nats-py {nats}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"
