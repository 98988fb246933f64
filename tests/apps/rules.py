"""Tasks that run in child processes, and the errors that decide whether they are retried."""

from jsq import App

app = App()


class Upstream(Exception):
    """The other service failed."""


class Busy(Upstream):
    """The other service is busy."""


class Gone(Upstream):
    """The other service has nothing of that name."""


def fail(kind: str) -> None:
    raise {one.__name__: one for one in (Upstream, Busy, Gone, KeyError, OSError)}[kind](kind)


@app.task(
    executor="process",
    retries=9,
    backoff="none",
    retry_if=lambda error, attempt: isinstance(error, Busy) and "soft" in str(error) and attempt < 3,
)
def asking(how: str) -> None:
    raise Busy(how)
