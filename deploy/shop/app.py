"""The app that compose.yaml and kubernetes/ run until you put yours in its place: mail, and reports."""

import asyncio

from jsq import App, Context

app = App(name="shop")
app.queue("mail", rate="100/s")
app.queue("reports", lease=60)


@app.task(queue="mail", retries=5)
async def send(ctx: Context, to: str, subject: str) -> str:
    """A mail that takes a tenth of a second, and no server of yours."""
    await asyncio.sleep(0.1)
    return f"{subject} to {to}, attempt {ctx.attempt}"


@app.task(queue="reports", executor="process", timeout=300)
def report(year: int) -> list[str]:
    """A report that needs a CPU: it runs in a process of its own."""
    return [f"{year}-{month:02}" for month in range(1, 13)]


@app.cron("0 3 * * *", name="nightly")
@app.task
async def nightly() -> None:
    """A schedule: `jsq schedule next nightly` prints when it runs."""
