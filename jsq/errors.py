"""The errors of jsq, as a tree.

    JsqError
        UsageError    the call cannot work: correct the call
        BrokerError   NATS could not do it: repair the server, or try again
        JobError      the job gave no result

`Retry`, `Snooze`, `RateLimited` and `Reject` are signals that a task raises, not errors: see
`jsq.model.signals`.
Each message names the field or object, the rule and the value, and a way to correct it.
"""

import operator
from collections.abc import Mapping, Sequence
from datetime import datetime


class JsqError(Exception):
    """The root of all that jsq raises.

    `retryable` is true if the same call may succeed later without any change.
    """

    retryable = False


# -- the call cannot work -------------------------------------------------------------------------------


class UsageError(JsqError):
    """The call cannot work as it is written."""


class BadName(UsageError):
    """The name of a queue, task, job, namespace or header breaks the rule for such names."""

    def __init__(self, kind: str, name: object, rule: str) -> None:
        noun = "job id" if kind == "job" else f"{kind} name"
        rule, semicolon, fix = rule.partition("; ")
        super().__init__(f"{noun} must be {rule}, got {display(name)}{semicolon}{fix}")
        self.kind = kind
        self.name = name


class BadOption(UsageError):
    """The value of an option breaks the rule of the option.

    A rule that starts with "must" is shown with the field and the value; text after "; " is the way to
    correct the call. Any other rule is the whole message.
    """

    def __init__(self, field: str, value: object, rule: str) -> None:
        must, semicolon, fix = rule.partition("; ")
        message = f"{field} {must}, got {display(value)}{semicolon}{fix}"
        super().__init__(message if rule.startswith("must ") else rule)
        self.field = field
        self.value = value
        self.rule = rule

    def __reduce__(self) -> tuple[type["BadOption"], tuple[str, object, str]]:
        return type(self), (self.field, self.value, self.rule)


class BadArguments(UsageError):
    """The arguments do not fit the task, or cannot be sent.

    `index` is the index of the wrong call of a bulk submit in its list of calls, counted from 0.
    """

    def __init__(self, message: str, index: int = 0) -> None:
        super().__init__(message)
        self.index = index


class BadWorkflow(UsageError):
    """A workflow cannot work as it is built; `node` is the number and the name of the node, if it is one."""

    def __init__(self, workflow: str, rule: str, node: str = "") -> None:
        place = f"node {node} of workflow {display(workflow)}" if node else f"workflow {display(workflow)}"
        super().__init__(f"{place} {rule}")
        self.workflow, self.rule, self.node = workflow, rule, node

    def __reduce__(self) -> tuple[type["BadWorkflow"], tuple[str, str, str]]:
        return type(self), (self.workflow, self.rule, self.node)


class NoSuchMethod(UsageError, AttributeError):
    """The object has no such method; the message names the one to call instead."""


class BadEnvelope(UsageError):
    """A message on the subject of a queue is not a job."""


class NewerEnvelope(UsageError):
    """A job was encoded by a later release of jsq, which this release cannot read."""


class BadResult(UsageError):
    """The result of a step cannot be stored, or that of a job does not fit the annotation of its reader."""


class UnknownTask(UsageError):
    """No task of that name is declared on this App; `wanted` is the option that names it.

    The name of a function, `module:name`, is known if the App allows the function.
    """

    def __init__(self, name: str, wanted: str = "") -> None:
        prefix = f"{wanted}: " if wanted else ""
        if isinstance(name, str) and ":" in name:
            super().__init__(
                f"{prefix}the function {display(name)} is not allowed: App(allow_functions=[...]) must match "
                "it, and its module must define it"
            )
        else:
            super().__init__(f"{prefix}no task is named {display(name)}; was its module imported?")
        self.name = name
        self.wanted = wanted


class TaskExists(UsageError):
    """Two functions are declared under the same task name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"a task named {name!r} is already declared; give one of them another name=")
        self.name = name


class NotIncluded(UsageError):
    """A task of a Router was used with the server before an App has included the Router."""

    def __init__(self, prefix: str = "") -> None:
        which = f"the Router {prefix!r}" if prefix else "a Router"
        super().__init__(
            f"this task belongs to {which}, which no App has included; call app.include(router) before the "
            "first submit, or app.load() if App(include=[...]) names its module"
        )


class JobNotFound(UsageError):
    """No job has that id: it was never submitted, or its record has expired."""

    def __init__(self, id: str) -> None:
        super().__init__(
            f"no job has the id {display(id)}: it was never submitted, or its record has expired"
        )
        self.id = id


class NoDeadLetter(JobNotFound):
    """The job exists and has no dead letter: it did not fail, or the dead letter was purged."""

    def __init__(self, id: str, state: str) -> None:
        super().__init__(id)
        why = "it was purged" if state == "failed" else f"it is {state}, and only a failed job has one"
        self.args = (f"job {id} has no dead letter: {why}",)
        self.state = state

    def __reduce__(self) -> tuple[type["NoDeadLetter"], tuple[str, str]]:
        return type(self), (self.id, self.state)


class ScheduleNotFound(UsageError):
    """No schedule has that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no schedule is named {display(name)}; `jsq schedule ls` lists the schedules")
        self.name = name


class QueueNotFound(UsageError):
    """No queue has that name: it was never declared, and no job was submitted to it."""

    def __init__(self, queue: str) -> None:
        super().__init__(f"there is no queue {queue}; `jsq queue ls` lists the queues")
        self.queue = queue


class QueueNotEmpty(UsageError):
    """The queue cannot be removed: it holds `jobs` that have not ended, or `schedules`."""

    def __init__(self, queue: str, jobs: int, schedules: Sequence[str] = ()) -> None:
        held = [count_noun(jobs, "job")] if jobs else []
        held += [f"{count_noun(len(schedules), 'schedule')} ({', '.join(schedules)})"] if schedules else []
        fix = "remove them first, or remove the queue and its contents with force (`--force`)"
        super().__init__(f"queue {queue} holds {' and '.join(held)}; {fix}")
        self.queue, self.jobs, self.schedules = queue, jobs, tuple(schedules)


class WrongState(UsageError):
    """The state of the job does not allow the requested change."""

    def __init__(self, id: str, state: str, asked: str) -> None:
        super().__init__(f"job {id} is {state}: it cannot be {asked}")
        self.id = id
        self.state = state


class ArgumentsNotKept(WrongState):
    """A job that has ended cannot run again: its record does not hold its arguments."""

    def __init__(self, id: str, state: str, why: str) -> None:
        super().__init__(id, state, f"run again: its record does not hold its arguments ({why})")
        self.why = why

    def __reduce__(self) -> tuple[type["ArgumentsNotKept"], tuple[str, str, str]]:
        return type(self), (self.id, self.state, self.why)


class DuplicateJob(UsageError):
    """Another job, `id`, holds the unique key of the submit, and `on_duplicate` is `raise`."""

    def __init__(self, task: str, id: str) -> None:
        super().__init__(f"{task}: job {id} holds this unique key; no job was submitted")
        self.task = task
        self.id = id

    def __reduce__(self) -> tuple[type["DuplicateJob"], tuple[str, str]]:
        return type(self), (self.task, self.id)


class CannotChange(UsageError):
    """An existing queue cannot take a setting; the message names a way to apply it."""


class LifespanFailed(UsageError):
    """The lifespan of the App failed. `stage` is `start` or `run`; the exception is the `__cause__`."""

    def __init__(self, stage: str, error: BaseException) -> None:
        text = shorten(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__, 500)
        done = "failed to start" if stage == "start" else "failed while the worker ran"
        super().__init__(f"the lifespan of the App {done}: {text}")
        self.stage = stage
        self.error = error

    def __reduce__(self) -> tuple[type["LifespanFailed"], tuple[str, BaseException]]:
        return type(self), (self.stage, self.error)


class NoCurrentJob(UsageError):
    """`jsq.current_job()` was called where no job runs."""

    def __init__(self) -> None:
        super().__init__(
            "no job runs here, or the App lacks the middleware that notes it: App(middleware=[CurrentJob()])"
        )


class ImmediateUnsupported(UsageError):
    """Immediate mode cannot show what a server does here; the message names the reason and an alternative."""


# -- NATS could not -------------------------------------------------------------------------------------


class BrokerError(JsqError):
    """NATS could not do the request."""


class BrokerUnavailable(BrokerError):
    """No server answers at the address, or none answers in time.

    It is not `retryable` if the reason is the address, the TLS settings or a missing package.
    """

    retryable = True

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


class BadAddress(BrokerUnavailable):
    """The address of the server is not one."""

    retryable = False

    def __init__(self, shown: str) -> None:
        super().__init__(f"{shown} is not the address of a server; write nats://HOST:PORT", retryable=False)
        self.shown = shown

    def __reduce__(self) -> tuple[type["BadAddress"], tuple[str]]:
        return type(self), (self.shown,)


class SubmitUnknown(BrokerError):
    """The server did not confirm whether it stored the job. Submitting again with the same id is safe."""

    retryable = True

    def __init__(self, id: str, seconds: float, why: str = "") -> None:
        reason = f" ({why})" if why else ""
        super().__init__(
            f"no acknowledgement within {seconds:g} s{reason}; job {id} may or may not be stored. Submitting "
            f"again with id={id!r} is safe."
        )
        self.id = id


class BulkUnknown(BrokerError):
    """The server did not confirm whether it stored all jobs of an atomic submit or none; `ids` are theirs."""

    retryable = True

    def __init__(self, ids: Sequence[str], seconds: float, why: str = "") -> None:
        reason = f" ({why})" if why else ""
        super().__init__(
            f"no acknowledgement within {seconds:g} s{reason}; all or none of the {len(ids):,} jobs may be "
            "stored. Submitting the same calls again with ids=error.ids is safe.",
        )
        self.ids = tuple(ids)


class NotAllowed(BrokerError):
    """The server refused the login, or the user lacks a permission."""


class JetStreamOff(BrokerError):
    """The server, or this account, has no JetStream."""


class ServerTooOld(BrokerError):
    """The server lacks what jsq needs."""


class ForeignStream(BrokerError):
    """A stream, or its subjects, belong to another application."""


class QueueFull(BrokerError):
    """The queue is full: one of its own limits is reached. Nothing was stored.

    `limit` is `max_jobs` or `max_bytes`, `value` the setting, if it is known.
    """

    retryable = True

    def __init__(self, queue: str, limit: str, value: int | None = None) -> None:
        shown = "" if value is None else f", {value:,},"
        super().__init__(
            f"queue {queue} is full: its {limit}{shown} is reached; submit again later, wait for room "
            f"(wait_for_room), or raise its {limit}"
        )
        self.queue = queue
        self.limit = limit
        self.value = value


class BrokerFull(BrokerError):
    """The server, or this account, has no room left: in memory, on disk, or for one more stream.

    Nothing was stored. Stored jobs continue; the records that their workers write wait for room.
    """

    retryable = True


class PartlySubmitted(BrokerError):
    """Some jobs of a bulk submit were stored; the others were not, or may not have been.

    `stored` has the ids of the stored jobs. `refused` has the errors of the others by their index in the
    calls, counted from 0.
    """

    retryable = True

    def __init__(self, stored: Sequence[str], refused: Mapping[int, JsqError]) -> None:
        index, first = min(refused.items(), key=operator.itemgetter(0))
        super().__init__(
            f"{len(stored):,} of {len(stored) + len(refused):,} jobs were stored; the first error is that of "
            f"call {index:,}, counted from 0: {first}"
        )
        self.stored = tuple(stored)
        self.refused = dict(refused)


class Refused(BrokerError):
    """The server refused a request, for a reason without an error class; `code` is that of JetStream."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


# -- the job gave no result -----------------------------------------------------------------------------


class JobError(JsqError):
    """The job gave no result."""


class JobFailed(JobError):
    """The job failed for good.

    `reason` is one of `jsq.model.revision.REASONS`; `error` is the type and message of the exception as text,
    and `traceback` its traceback. An exception is never rebuilt from a message. `fallback` is the id of the
    job that was submitted instead, if the task has a fallback.
    """

    def __init__(self, id: str, reason: str, error: str, traceback: str = "", fallback: str = "") -> None:
        instead = f"; job {fallback} was submitted instead" if fallback else ""
        super().__init__(f"job {id} failed ({reason}): {error}{instead}")
        self.fallback = fallback
        self.id = id
        self.reason = reason
        self.error = error
        self.traceback = traceback


class JobCancelled(JobError):
    """The job was cancelled."""

    def __init__(self, id: str) -> None:
        super().__init__(f"job {id} was cancelled")
        self.id = id


class JobExpired(JobError):
    """The job did not succeed before its deadline, or no worker started it before it expired."""

    def __init__(self, id: str, error: str) -> None:
        super().__init__(f"job {id} has expired: {error}")
        self.id = id
        self.error = error


class ResultGone(JobError):
    """The job succeeded, but its result was not stored (`keep_result=0`)."""

    def __init__(self, id: str) -> None:
        super().__init__(
            f"job {id} succeeded, but its result was not stored; submit jobs with keep_result to read results"
        )
        self.id = id


class ResultDropped(ResultGone):
    """The job succeeded, but its result could not be stored, for the reason `why`: its effects stay."""

    def __init__(self, id: str, why: str) -> None:
        JobError.__init__(self, f"job {id} succeeded, but its result was dropped: {why}")
        self.id = id
        self.why = why


class ResultTimeout(JobError, TimeoutError):
    """The job did not end in time. It continues."""

    retryable = True

    def __init__(self, id: str, seconds: float) -> None:
        super().__init__(f"job {id} did not end within {seconds:g} s; it continues")
        self.id = id


class StepUnknown(JobError):
    """A step was started, and its end is not known: its effect may or may not have happened.

    A job that does not catch this error fails, because no other attempt could know more. `attempt` is the
    attempt that started the step. `error` is the exception of the step as text; empty if none is stored.
    """

    def __init__(self, id: str, step: str, attempt: int, error: str = "") -> None:
        end = f"raised {error}" if error else "has no known end"
        super().__init__(
            f"step {step} of job {id} was started by attempt {attempt} and {end}: its effect may or may not "
            'have happened; check it, then call the step with unknown="run" or unknown="skip"'
        )
        self.id = id
        self.step = step
        self.attempt = attempt
        self.error = error


class LeaseLost(JobError):
    """The worker did not renew its lease in time: the job belongs to another worker now."""


# -- values in messages ---------------------------------------------------------------------------------


def display(value: object) -> str:
    """A value for a message, shortened; the name of its type if its `repr` raises."""
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    try:
        return shorten(repr(value))
    except Exception:  # a user's __repr__ may do anything
        return f"<{type(value).__name__}>"


def shorten(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def count_noun(number: int, noun: str) -> str:
    """A number and a noun: `1 job`, `2 queries`."""
    many = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else many}"
