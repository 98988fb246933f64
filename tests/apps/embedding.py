"""Programs of users that submit jobs: a WSGI application, and processes that fork or are frozen."""

import os
import sys
from collections.abc import Callable, Iterable

from jsq import App

app = App()


@app.task
def double(number: int) -> int:
    return 2 * number


def application(
    environment: dict[str, object], start_response: Callable[[str, list[tuple[str, str]]], object]
) -> Iterable[bytes]:
    """Submits a job for each request, and answers with the process and the id of the job."""
    job = double.delay(1)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {job.id}".encode()]


if os.environ.get("CONNECT_AT_IMPORT"):
    double.delay(0)


def fork_after_connect() -> None:
    """Submit, fork, and submit in both processes."""
    ids = [double.delay(1).id]
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write_end, double.delay(2).id.encode())
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    ids += [os.read(read_end, 200).decode(), double.delay(3).id]
    print(*ids)


def submit_for_each_line() -> None:
    """Submit a job for each line of the standard input, as a function service does for each call."""
    for _ in sys.stdin:
        print(double.delay(1).id, flush=True)


if __name__ == "__main__":
    {"fork": fork_after_connect, "lines": submit_for_each_line}[sys.argv[1]]()
