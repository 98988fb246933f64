"""The embedded server: at most one for a folder, and none left running."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jsq import App, BrokerUnavailable, Client, JetStreamOff, UsageError
from jsq.server import SERVER_STOP_SECONDS, EmbeddedServer
from tests.helpers.servers import nats_server


def test_a_second_server_on_a_folder_is_refused_and_the_first_is_named(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as first:
        with pytest.raises(UsageError, match=f"already uses .*, at {first.url}; use that server"):
            EmbeddedServer(tmp_path).start()
        first.kill()
        first.restart()
        with pytest.raises(UsageError, match="already"):
            EmbeddedServer(tmp_path).start()
    with EmbeddedServer(tmp_path) as second:
        assert second.url


def test_a_server_that_did_not_start_releases_its_folder(tmp_path: Path) -> None:
    with pytest.raises(BrokerUnavailable, match="did not start"):
        EmbeddedServer(tmp_path, sync_interval="nonsense").start()
    with EmbeddedServer(tmp_path) as server:
        assert server.url


def test_a_temporary_server_ends_at_once_though_it_does_not_reply() -> None:
    """A clean shutdown took seconds to write the state of streams that nobody reads again."""
    server = EmbeddedServer().start()
    os.kill(server.pid, signal.SIGSTOP)
    start_time = time.monotonic()

    server.stop()

    assert time.monotonic() - start_time < SERVER_STOP_SECONDS / 2


def test_an_invalid_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UsageError, match="cannot hold a server's streams"):
        EmbeddedServer(file).start()
    with pytest.raises(UsageError, match="cannot hold a server's streams"):
        EmbeddedServer(file / "below").start()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux notifies a child of the death of its parent")
def test_the_server_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = "import sys, time; from jsq.server import EmbeddedServer as E\n"
    code += "with E() as server: print(server.pid, flush=True); sys.stdin.read()"
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    end = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < end


async def test_the_namespace_comes_from_the_environment_unless_it_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JSQ_NAMESPACE", "other")
    assert (Client().namespace, App().namespace) == ("other", "other")
    assert (Client(namespace="mine").namespace, App(namespace="mine").namespace) == ("mine", "mine")
    monkeypatch.delenv("JSQ_NAMESPACE")
    assert (Client().namespace, App().namespace) == ("jsq", "jsq")


async def test_lists_of_a_server_without_jetstream_raise_an_error(tmp_path: Path) -> None:
    with nats_server(tmp_path, "") as address:
        async with Client(f"nats://{address}") as client:
            for listing in (
                client.jobs.list,
                client.dead_letters.list,
                client.admin.workers,
                client.queues.list,
            ):
                with pytest.raises(JetStreamOff):
                    await listing()
