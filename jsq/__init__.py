"""jsq: a distributed task queue on NATS JetStream.

This module names the public classes and imports each of them on first use, so that `jsq --help` starts
quickly. Type checkers read the same names from `__init__.pyi`.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_homes = {
    "app": ["App"],
    "batch": ["BatchItem"],
    "model.attempts": ["JobAttempt"],
    "model.callback": ["Failure"],
    "client.client": ["Client"],
    "client.flows": ["Flow", "chain", "group"],
    "client.workflows": ["WorkflowBuilder", "WorkflowRecord"],
    "model.workflow": ["StepOutcome", "WorkflowNode"],
    "context": ["Context"],
    "dependencies": ["Depends", "INJECTED"],
    "embedded": ["EmbeddedWorker"],
    "immediate": ["Immediate"],
    "middleware": ["ContextVars", "CurrentJob", "Middleware", "current_job"],
    "client.handle": ["BlockingJobHandle", "JobHandle"],
    "model.job": ["JobRecord"],
    "model.rate_limit": ["Rate"],
    "model.outcome": ["ChildDied", "TaskTimeout"],
    "model.retry": ["Backoff", "Retries"],
    "model.schedule": ["ScheduleRecord"],
    "model.signals": ["RateLimited", "Reject", "Retry", "Snooze"],
    "router": ["Router"],
    "settings": ["Login", "QueueSettings", "WorkerSettings"],
    "client.submitter": ["Submitter"],
    "task": ["Task"],
    "worker": ["Worker"],
    "errors": [
        "ArgumentsNotKept",
        "BadAddress",
        "BadArguments",
        "BadName",
        "BadOption",
        "BadResult",
        "BadWorkflow",
        "BrokerError",
        "BrokerFull",
        "BrokerUnavailable",
        "BulkUnknown",
        "CannotChange",
        "DuplicateJob",
        "ForeignStream",
        "ImmediateUnsupported",
        "JetStreamOff",
        "JobCancelled",
        "JobError",
        "JobExpired",
        "JobFailed",
        "JobNotFound",
        "JsqError",
        "LeaseLost",
        "LifespanFailed",
        "NoCurrentJob",
        "NoDeadLetter",
        "NotAllowed",
        "NotIncluded",
        "PartlySubmitted",
        "QueueFull",
        "QueueNotEmpty",
        "QueueNotFound",
        "ResultDropped",
        "ResultGone",
        "ResultTimeout",
        "ScheduleNotFound",
        "ServerTooOld",
        "StepUnknown",
        "SubmitUnknown",
        "TaskExists",
        "UnknownTask",
        "UsageError",
        "WrongState",
    ],
}
_home = {name: room for room, names in _homes.items() for name in names}

__all__ = sorted(_home)


def __getattr__(name: str) -> Any:
    if name not in _home:
        raise AttributeError(f"module 'jsq' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"jsq.{_home[name]}"), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
