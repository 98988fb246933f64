"""`jsq demo`: count the words of real files with two workers, and kill one of them half way."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from jsq.cli.options import CommonOptions, command

UNDER_WAY = 40
"""Unfinished jobs at a time: enough for both workers, and few enough that none waits long."""

DEMO_SECONDS = 120.0
SKIPPED = {"site-packages", "dist-packages", "__pycache__", ".git", "node_modules"}


@command
def demo(
    common: CommonOptions,
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="FOLDER", help="folder of the text files [the standard library]", show_default=False
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="count at most so many files")] = 2_000,
) -> None:
    """Count the words of a folder's files with two workers, and kill one of them half way.

    Starts a nats-server of its own, submits one job for each text file, and kills a worker with SIGKILL when
    half are submitted. Exits with 0 only if each file has exactly one recorded outcome. All that the demo
    started or stored is removed at its end.

    \b
    jsq demo
    jsq demo docs --limit 100
    """
    from jsq.errors import UsageError

    if common.server or common.namespace:
        raise UsageError("demo starts a server of its own: use it without --server and --namespace")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    files = list(text_files(folder or Path(sysconfig.get_path("stdlib")), limit))
    if not files:
        raise UsageError(f"{folder} contains no text file")
    run = asyncio.run(count_all(files))
    sys.exit(report(run, files))


@dataclass(slots=True)
class DemoRun:
    """The events of a run, and the jobs that were submitted and finished."""

    events: list[Any] = field(default_factory=list)
    submitted: dict[str, str] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    killed: int = 0
    seconds: float = 0.0


def text_files(folder: Path, limit: int) -> Iterator[Path]:
    """The readable files below a folder that are under 1 MiB and have no NUL byte in their first 8 KiB."""
    found = 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - SKIPPED)
        for name in sorted(names):
            path = Path(place, name)
            if found < limit and is_text(path):
                found += 1
                yield path


def is_text(path: Path) -> bool:
    try:
        if not path.is_file() or not 0 < path.stat().st_size < 2**20:
            return False
        with path.open("rb") as file:
            return b"\0" not in file.read(8192)
    except OSError:
        return False


async def count_all(files: list[Path]) -> DemoRun:
    from jsq.server import EmbeddedServer

    with EmbeddedServer(sync_interval="1s") as server, two_workers(server.url) as workers:
        run = DemoRun()
        async with watched(server.url, run):
            began = time.monotonic()
            await submit_all(server.url, files, run, workers)
            run.seconds = time.monotonic() - began
        return run


@contextlib.contextmanager
def two_workers(url: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two worker processes, which are ended when the block ends."""
    from jsq.server import die_with_us

    command = [sys.executable, "-m", "jsq", "worker", "jsq.cli.demo_tasks:app", "--log-level", "error"]
    env = {**os.environ, "JSQ_URL": url}
    workers = [
        subprocess.Popen(command, env=env, start_new_session=True, preexec_fn=die_with_us()) for _ in range(2)
    ]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            try:
                worker.wait(10)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


@contextlib.asynccontextmanager
async def watched(url: str, run: DemoRun) -> AsyncIterator[None]:
    """Note the end of each job as it happens, and read all events at the end of the block."""
    from jsq import Client
    from jsq.model.revision import FINAL_STATES

    async with Client(url) as client:

        async def watch() -> None:
            async for event in client.jobs.events():
                if event.state in FINAL_STATES:
                    run.finished.add(event.id)

        await client.admin.provision()
        watching = asyncio.create_task(watch())
        await asyncio.sleep(0)
        try:
            yield
            run.events = [event async for event in client.jobs.events(follow=False)]
        finally:
            watching.cancel()


async def submit_all(
    url: str, files: list[Path], run: DemoRun, workers: list[subprocess.Popen[bytes]]
) -> None:
    """Submit a job for each file, a few ahead of the workers. Half way, kill one of the workers."""
    from jsq import Client

    async with Client(url) as client, asyncio.timeout(DEMO_SECONDS):
        with demo_progress(len(files)) as (show, report_line):
            for path in files:
                while len(run.submitted) - len(run.finished) >= UNDER_WAY:
                    await watch_over(run, workers, show)
                job = await client.task("demo.count").submit(path=str(path))
                run.submitted[job.id] = str(path)
                if not run.killed and len(run.submitted) * 2 >= len(files):
                    run.killed = workers[0].pid
                    os.kill(run.killed, signal.SIGKILL)
                    report_line(
                        f"worker {run.killed} killed with SIGKILL; its jobs go to worker {workers[1].pid}"
                    )
            while len(run.finished) < len(files):
                await watch_over(run, workers, show)


async def watch_over(run: DemoRun, workers: list[subprocess.Popen[bytes]], show: Any) -> None:
    """Show the progress, and check that the second worker is alive. Raises `JsqError` if it is not."""
    from jsq.errors import JsqError

    await asyncio.sleep(0.01)
    show(len(run.finished))
    if workers[1].poll() is not None:
        raise JsqError(f"a worker ended by itself, with code {workers[1].returncode}: its log is above")


@contextlib.contextmanager
def demo_progress(total: int) -> Iterator[Any]:
    """A progress bar on stderr; gives a function that moves it, and one that prints a line above it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("counting"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("counting", total=total)
        yield lambda done: bar.update(task, completed=done), bar.console.print


# -- the report -----------------------------------------------------------------------------------------


def report(run: DemoRun, files: list[Path]) -> int:
    """Print the counts and the figures of the run; returns 0 if each file has exactly one outcome."""
    from jsq.model.revision import FINAL_STATES

    finals = [event for event in run.events if event.state in FINAL_STATES]
    outcomes = Counter(event.id for event in finals)
    attempts = Counter(
        event.id for event in run.events if event.state == "running" and event.progress is None
    )
    results = [event.result for event in finals if event.state == "succeeded"]
    words: Counter[str] = Counter()
    for result in results:
        words.update(result["words"])
    waits = sorted(waited(run.events))
    again = sum(1 for id in attempts if attempts[id] > 1)
    exact = outcomes == Counter(dict.fromkeys(run.submitted, 1)) and len(results) == len(files)
    typer.echo(f"files      {len(files):,}, lines {sum(result['lines'] for result in results):,}")
    typer.echo("words      " + ", ".join(f"{word} {times:,}" for word, times in words.most_common(10)))
    typer.echo(
        f"jobs       {len(run.submitted):,} in {run.seconds:.1f} s: {len(files) / run.seconds:,.0f} jobs/s"
    )
    typer.echo(
        f"attempts   {sum(attempts.values()):,}; worker {run.killed} killed, {again} of its jobs run again"
    )
    typer.echo(f"latency    submit to start p50 {at(waits, 0.5):.1f} ms, p99 {at(waits, 0.99):.1f} ms")
    typer.echo(
        f"outcomes   {len(finals):,}: " + ("exactly one for each file" if exact else faults(run, outcomes))
    )
    return 0 if exact and run.killed else 1


def waited(events: list[Any]) -> Iterator[float]:
    """Milliseconds from submit to first start of each job, both by the server's clock."""
    started: set[str] = set()
    for event in events:
        if event.state == "running" and event.id not in started:
            started.add(event.id)
            yield (event.at - event.submitted).total_seconds() * 1000


def at(values: list[float], part: float) -> float:
    return values[min(len(values) - 1, int(len(values) * part))] if values else 0.0


def faults(run: DemoRun, outcomes: Counter[str]) -> str:
    missing = len(set(run.submitted) - set(outcomes))
    doubled = sum(1 for times in outcomes.values() if times > 1)
    return f"NOT one for each file: {missing} without, {doubled} with more than one"
