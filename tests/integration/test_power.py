"""After a power failure, everything that the server had acknowledged is still there.

The server keeps its streams on a file system in a file. Under load the server is halted and that file is
copied. The copy holds the data that had reached the disk, and no data that only memory held.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from jsq import App, Client
from jsq.server import EmbeddedServer
from tests.helpers.conditions import Until
from tests.helpers.repository import SHIPPED

pytestmark = pytest.mark.proof

IMAGE_BYTES = 256 * 2**20
ENOUGH = 3_000

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("mkfs.ext4") or not Path("/dev/loop-control").exists(),
    reason="only root can mount a file system that is kept in a file",
)


def make_disk(image: Path) -> None:
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)


@contextlib.contextmanager
def mounted(image: Path, folder: Path) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-o", "loop", image, folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.asynccontextmanager
async def loaded(server: EmbeddedServer, namespace: str, acknowledged: list[str]) -> AsyncIterator[None]:
    """A load of submits. The acknowledged jobs are recorded."""

    async def pump(client: Client) -> None:
        while True:
            acknowledged.append((await client.task("any").submit()).id)

    async with Client(server.url, namespace=namespace) as client:
        await client.admin.provision()
        pumps = [asyncio.create_task(pump(client)) for _ in range(50)]
        try:
            yield
        finally:
            for one in pumps:
                one.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            os.kill(server.pid, signal.SIGCONT)


async def lost_with_the_power(
    tmp_path: Path, namespace: str, sync_interval: str, until: Until
) -> tuple[int, int]:
    """How many jobs were acknowledged before the power failure, and how many of them were lost."""
    image, copy = tmp_path / "image", tmp_path / "copy"
    make_disk(image)
    acknowledged: list[str] = []
    with mounted(image, tmp_path / "before") as disk:
        os.sync()  # the empty file system is on the disk
        with EmbeddedServer(disk / "streams", sync_interval=sync_interval) as server:
            async with loaded(server, namespace, acknowledged):
                await until(lambda: len(acknowledged) >= ENOUGH, 60)
                os.kill(server.pid, signal.SIGSTOP)
                before = list(acknowledged)
                shutil.copyfile(image, copy)
            server.kill()

    with mounted(copy, tmp_path / "after") as disk:
        (disk / "streams").mkdir(exist_ok=True)
        with EmbeddedServer(disk / "streams", sync_interval=sync_interval) as server:
            async with App(server.url, namespace=namespace) as app:
                broker = await app.client.broker()
                stored = set(await broker.job_reader.waiting_ids("default"))
    return len(before), len(set(before) - stored)


@needs_root
async def test_no_acknowledged_job_is_lost_in_a_power_failure_with_the_shipped_conf(
    tmp_path: Path, namespace: str, until: Until
) -> None:
    assert "\n  sync_interval: always\n" in SHIPPED.read_text()

    acknowledged, lost = await lost_with_the_power(tmp_path, namespace, "always", until)

    assert acknowledged >= ENOUGH
    assert lost == 0


@needs_root
async def test_a_server_that_syncs_rarely_loses_acknowledged_jobs_in_a_power_failure(
    tmp_path: Path, namespace: str, until: Until
) -> None:
    acknowledged, lost = await lost_with_the_power(tmp_path, namespace, "2m", until)

    assert acknowledged >= ENOUGH
    assert lost > 0
