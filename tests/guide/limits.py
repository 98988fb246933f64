"""The limits of jsq, for the reference page. Figures come from the constants that enforce them."""

from jsq.batch import LONGEST_WAIT, MOST_ITEMS
from jsq.broker.jobs.messages import ROOM_FOR_HEADERS
from jsq.broker.jobs.records import MAX_RECORD_RESULT, PROGRESS_SECONDS, RECORD_SECONDS
from jsq.broker.submit.atomic import MAX_ATOMIC_BYTES
from jsq.broker.topology.configs import MAX_HISTORY, RECORD_DAYS
from jsq.model.checkpoint import MAX_STEPS, MAX_VALUE_BYTES
from jsq.model.durations import MAX_DURATION
from jsq.model.job import MAX_ID_LENGTH
from jsq.model.key_group import MAX_KEY_LENGTH, MAX_PER_KEY, MAX_WEIGHT, MAX_WEIGHTS
from jsq.model.options import MAX_HEADER_BYTES, MAX_HEADERS, MAX_SLOTS, MAX_TAGS
from jsq.model.outcome import MAX_ERROR_LENGTH, MAX_TRACEBACK_LENGTH
from jsq.model.pause import MAX_PAUSES
from jsq.model.rate_limit import MAX_COUNT
from jsq.model.retry import MAX_RETRIES
from jsq.model.revision import MAX_RECORD_ARGUMENTS, MAX_REVISION_HEADER_BYTES
from jsq.model.schedule import (
    MAX_CATCH_UP,
    MAX_CRON_LENGTH,
    MAX_JITTER_SECONDS,
    MAX_SCHEDULE_NAME_LENGTH,
)
from jsq.model.workflow import MAX_NODES
from jsq.settings import QueueSettings, WorkerSettings
from jsq.transport.batch_publish import MAX_COMMIT_MESSAGES

DAY = 86_400


def size(number: int) -> str:
    return f"{number // 1024**2} MiB" if number % 1024**2 == 0 else f"{number // 1024} KiB"


LIMITS: tuple[tuple[str, str], ...] = (
    (
        "arguments, headers and tags of a job",
        f"the `max_payload` of the server, which is 1 MiB by default, less {size(ROOM_FOR_HEADERS)}",
    ),
    ("arguments in the record of a job", f"{size(MAX_RECORD_ARGUMENTS)}; larger ones by size and hash"),
    ("result in the record of a job", f"{size(MAX_RECORD_RESULT)}; a larger one is stored beside it"),
    ("checkpoint, result of a step", size(MAX_VALUE_BYTES)),
    ("steps of a job", f"{MAX_STEPS}"),
    ("headers of a job", f"{MAX_HEADERS}, {size(MAX_HEADER_BYTES)} together"),
    ("headers in the record of a job", size(MAX_REVISION_HEADER_BYTES)),
    ("nodes of a workflow", f"{MAX_NODES:,}; its definition must fit into one message"),
    ("tags of a job", f"{MAX_TAGS}, each of 1 to 64 characters"),
    ("id of a job", f"{MAX_ID_LENGTH} characters, all printable"),
    ("name of a task", "128 characters"),
    ("name of a queue", "64 letters, digits, `_` and `-`"),
    ("name of a namespace", "32 lower case letters, digits and `-`"),
    ("name of a schedule", f"{MAX_SCHEDULE_NAME_LENGTH} characters, all printable"),
    ("cron expression", f"{MAX_CRON_LENGTH} characters"),
    ("jitter of a schedule", f"{MAX_JITTER_SECONDS:g} s"),
    ("ticks that a schedule catches up at once", f"{MAX_CATCH_UP}"),
    ("key", f"{MAX_KEY_LENGTH} characters"),
    ("`per_key`", f"{MAX_PER_KEY:,}"),
    ("weights of a queue", f"{MAX_WEIGHTS:,} keys, each up to {MAX_WEIGHT:,}"),
    ("starts and burst of a rate limit", f"{MAX_COUNT:,}"),
    ("pauses of a queue", f"{MAX_PAUSES:,}"),
    ("slots of a job", f"{MAX_SLOTS:,}"),
    ("retries", f"{MAX_RETRIES:,}"),
    ("any duration", f"{MAX_DURATION / DAY:g} days"),
    ("lease", "1 to 3600 s"),
    ("lease unless the queue has another", f"{QueueSettings.defaults['lease']:g} s"),
    ("crashes of a job", f"{QueueSettings.defaults['max_crashes']}, unless the queue has `max_crashes`"),
    ("jobs that one worker process runs at once", f"{WorkerSettings.defaults['concurrency']}, up to 10,000"),
    ("jobs of a batch", f"{MOST_ITEMS:,}, gathered for up to {LONGEST_WAIT:g} s"),
    ("jobs of an atomic submit", f"{MAX_COMMIT_MESSAGES:,}, {size(MAX_ATOMIC_BYTES)} together"),
    ("changes in the record of a job", f"the last {MAX_HISTORY}"),
    ("error text, traceback in a record", f"{MAX_ERROR_LENGTH:,} and {MAX_TRACEBACK_LENGTH:,} characters"),
    ("record of a job that succeeded at once", f"{RECORD_SECONDS // DAY} days"),
    ("any other record, dead letter, checkpoint", f"{RECORD_DAYS} days"),
    ("progress report", f"{PROGRESS_SECONDS // DAY} day"),
    ("id of the caller: repeated submits are found", f"{RECORD_SECONDS // DAY} days"),
)
"""Each limited thing, and its limit."""
