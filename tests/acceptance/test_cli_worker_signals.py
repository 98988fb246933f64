"""`jsq worker`: the signals that make it quiet and print its stacks, `--max-jobs` and `--max-idle`."""

import asyncio
import signal

from jsq import Client
from tests.acceptance.conftest import Command
from tests.helpers.conditions import Until

SHOP = """
import asyncio, os
from jsq import App
app = App()

@app.task
async def wait_on_loop() -> None:
    await asyncio.sleep(600)  # on the loop

@app.task
def where() -> int:
    return os.getpid()
"""


async def read_until(stream: asyncio.StreamReader | None, *parts: str) -> str:
    """Read lines until each part was in one of them; returns what was read."""
    assert stream is not None
    text = ""
    async with asyncio.timeout(30):
        while not all(part in text for part in parts):
            line = await stream.readline()
            assert line, text
            print(line.decode(), end="")
            text += line.decode()
    return text


async def test_a_supervisor_passes_the_signals_on_to_its_workers(
    jsq: Command, client: Client, until: Until
) -> None:
    jsq.write("shop.py", SHOP)

    async def are(state: str) -> bool:
        return [one["state"] for one in await client.admin.workers()] == [state] * 2

    async with jsq.running("worker", "shop:app", "--processes", "2", "--grace", "0") as process:
        job = await client.task("wait_on_loop").submit()
        await until(lambda: are("running"))

        async def run() -> bool:
            return (await job.status()).state == "running"

        await until(run)
        process.send_signal(signal.SIGTSTP)
        await until(lambda: are("quiet"))
        process.send_signal(signal.SIGUSR1)
        text = await read_until(
            process.stderr, f"job {job.id}, task wait_on_loop", "await asyncio.sleep(600)  # on the loop"
        )
        assert "Current thread" in text
        process.send_signal(signal.SIGCONT)
        await until(lambda: are("running"))
        process.send_signal(signal.SIGTERM)
        await read_until(process.stderr, "worker stopped")
        assert await process.wait() == 0


async def test_worker_processes_are_replaced_after_their_jobs_and_stop_without_work(
    jsq: Command, client: Client
) -> None:
    jsq.write("shop.py", SHOP)
    jobs = await client.task("where").submit_many([()] * 5)
    limits = ("--max-jobs", "2", "--max-idle", "500ms", "--concurrency", "1")

    ended = await jsq("worker", "shop:app", "--processes", "2", *limits)

    assert ended.code == 0
    assert "worker process replaced" in ended.err
    assert "worker process died" not in ended.err
    assert len({await job.result(0) for job in jobs}) >= 3
