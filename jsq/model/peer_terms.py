"""The terms of other task queues, each with the term of jsq, for the message when one is used by mistake.

The tables are read only after a name was not found. The guide has a page for each of these systems, and a
test compares the pages with the tables.
"""

from collections.abc import Mapping
from typing import NoReturn, TypeAlias

from jsq.errors import NoSuchMethod

PeerTerms: TypeAlias = Mapping[str, tuple[str, str]]
"""For each name the advice, and the system whose guide page explains it; empty if several systems have it."""

NO_TERMS: PeerTerms = {}

OPTION_TERMS: PeerTerms = {
    # Celery
    "countdown": ("use delay=", "celery"),
    "eta": ("use at= or delay=", ""),
    "task_id": ("use id=", ""),
    "max_retries": ("use retries=", ""),
    "autoretry_for": ("use retry_on=", "celery"),
    "dont_autoretry_for": ("use no_retry_on=", "celery"),
    "retry_backoff_max": ("use backoff_max=", "celery"),
    "retry_jitter": ("use jitter=", "celery"),
    "default_retry_delay": ("use backoff=, such as backoff=[60]", "celery"),
    "rate_limit": ("use rate= of the task or of its queue", "celery"),
    "bind": ("give the function a first parameter of the type Context", "celery"),
    "time_limit": ("use timeout=, and hard_timeout= with executor='process'", ""),
    "soft_time_limit": ("use timeout=", "celery"),
    "ignore_result": ("use keep_result=0", "celery"),
    "acks_late": ("leave it out: jsq always acknowledges after the outcome is recorded", "celery"),
    "track_started": ("leave it out: jsq always records that a job runs", "celery"),
    "routing_key": ("use queue=", "celery"),
    "exchange": ("use queue=", "celery"),
    "link": ("submit the next job at the end of the task: jsq has no workflows yet", "celery"),
    "link_error": ("use on_dead= or on_failure= of the task", "celery"),
    "serializer": ("leave it out: jsq always sends JSON", "celery"),
    # RQ
    "job_timeout": ("use timeout=", "rq"),
    "result_ttl": ("use keep_result=", ""),
    "failure_ttl": ("leave it out: the record of a failed job is kept for 30 days", "rq"),
    "ttl": ("use expires= for the wait before the start, or keep_result= for the result", ""),
    "job_id": ("use id=", ""),
    "at_front": ("use priority='high'", "rq"),
    "depends_on": ("submit the next job at the end of the task: jsq has no workflows yet", "rq"),
    "meta": ("use headers= or tags=, and ctx.progress(...) in the task", ""),
    "on_success": ("submit the next job at the end of the task: jsq has no workflows yet", ""),
    # SAQ
    "scheduled": ("use at=", "saq"),
    "retry_delay": ("use backoff=", ""),
    "retry_backoff": ("use backoff='exponential'", ""),
    "group_key": ("use key= with per_key=1", "saq"),
    "heartbeat": ("leave it out: the worker renews the lease of a running job", "saq"),
    # Huey
    "context": ("give the function a first parameter of the type Context", "huey"),
    # Dramatiq
    "actor_name": ("use name=", "dramatiq"),
    "queue_name": ("use queue=", "dramatiq"),
    "min_backoff": ("use backoff=, with a list of seconds or a Backoff", "dramatiq"),
    "max_backoff": ("use backoff_max=", "dramatiq"),
    "max_age": ("use expires= for the start, or deadline= for the end", "dramatiq"),
    "throws": ("use no_retry_on=", "dramatiq"),
    "retry_when": ("use retry_if=", "dramatiq"),
    "store_results": ("leave it out: results are kept, and keep_result=0 drops them", "dramatiq"),
    "pipe_target": ("submit the next job at the end of the task: jsq has no workflows yet", "dramatiq"),
    # taskiq
    "task_name": ("use name=", "taskiq"),
    "retry_on_error": ("use retries=; an exception is retried unless retries=0", "taskiq"),
    "labels": ("use tags= or headers=", "taskiq"),
    "schedule": ("use @app.cron or @app.every above the task", "taskiq"),
    # arq
    "max_tries": ("use retries=, which does not count the first attempt", "arq"),
    "_job_id": ("use id=", "arq"),
    "_queue_name": ("use queue=", "arq"),
    "_defer_by": ("use delay=", "arq"),
    "_defer_until": ("use at=", "arq"),
    "_expires": ("use expires=", "arq"),
    "keep_result_forever": ("use keep_result=; the record of a job is kept for 7 days", "arq"),
    "run_at_startup": ("submit the job yourself, or use client.schedules.run(...)", "arq"),
    # APScheduler
    "trigger": ("use cron= or every=", "apscheduler"),
    "seconds": ("use every=, such as every='30s'", "apscheduler"),
    "minutes": ("use every=, such as every='5m'", "apscheduler"),
    "hours": ("use every=, such as every='1h'", "apscheduler"),
    "day_of_week": ("use cron=, such as cron='0 3 * * MON'", "apscheduler"),
    "hour": ("use cron=, such as cron='0 3 * * *'", ""),
    "minute": ("use cron=, such as cron='*/5 * * * *'", ""),
    "run_date": ("use at= of a submit", "apscheduler"),
    "timezone": ("use tz=", "apscheduler"),
    "start_date": ("use start=", "apscheduler"),
    "end_date": ("use end=", "apscheduler"),
    "max_instances": ("use overlap='skip' of the schedule, or per_key=1 with key=", "apscheduler"),
    "coalesce": ("use catch_up='latest'", "apscheduler"),
    "misfire_grace_time": ("use catch_up='none', or expires=", "apscheduler"),
    "replace_existing": ("leave it out: adding a schedule replaces the one of that name", "apscheduler"),
}
"""Options of a task, a submit or a schedule."""

SUBMIT_TERMS: PeerTerms = {
    "delay": ("use .blocking.submit(...), or .options(delay=...) to start it later", "celery"),
    "apply_async": ("use .options(...).submit(...)", "celery"),
    "signature": ("use .s(...) for a step of a workflow", "celery"),
    "subtask": ("use .s(...) for a step of a workflow", "celery"),
    "apply": ("call the task itself, or use .submit(...)", "celery"),
    "starmap": ("use .map(calls) or .submit_many(calls)", "celery"),
    "chunks": ("use .submit_many(calls)", "celery"),
    "AsyncResult": ("use .job(id)", "celery"),
    "send": ("use .submit(...)", "dramatiq"),
    "send_with_options": ("use .options(...).submit(...)", "dramatiq"),
    "message": ("use .s(...) for a step of a chain or group", "dramatiq"),
    "fn": ("use .function, or call the task itself", "dramatiq"),
    "kiq": ("use .submit(...)", "taskiq"),
    "kicker": ("use .options(...)", "taskiq"),
    "schedule_by_cron": ("use app.schedule(...) or client.schedules.add(...)", "taskiq"),
    "schedule_by_time": ("use .options(at=...).submit(...)", "taskiq"),
    "schedule": ("use .options(delay=...) or .options(at=...)", "huey"),
    "call_local": ("call the task itself", "huey"),
    "revoke": ("use client.queues.pause(queue, task=...)", "huey"),
    "restore": ("use client.queues.resume(queue, task=...)", "huey"),
    "then": ("submit the next job at the end of the task: jsq has no workflows yet", "huey"),
    "enqueue": ("use .submit(...)", ""),
    "perform_async": ("use .submit(...)", ""),
    "perform_in": ("use .options(delay=...).submit(...)", ""),
    "perform_later": ("use .submit(...)", ""),
}
"""Methods of a task, or of a task with options."""

CLIENT_TERMS: PeerTerms = {
    "send_task": ("use client.task(name).submit(...)", "celery"),
    "AsyncResult": ("use client.jobs.handle(id)", "celery"),
    "control": ("use client.jobs and client.queues", "celery"),
    "enqueue": ("use client.task(name).submit(...)", ""),
    "enqueue_call": ("use client.task(name).submit(...)", "rq"),
    "enqueue_in": ("use client.task(name).options(delay=...).submit(...)", "rq"),
    "enqueue_at": ("use client.task(name).options(at=...).submit(...)", "rq"),
    "enqueue_many": ("use client.task(name).submit_many(calls)", "rq"),
    "fetch_job": ("use client.jobs.get(id) or client.jobs.handle(id)", "rq"),
    "get_job": ("use client.jobs.get(id) or client.jobs.handle(id)", ""),
    "enqueue_job": ("use client.task(name).submit(...)", "arq"),
    "queued_jobs": ("use client.jobs.list(state='queued')", "arq"),
    "all_job_results": ("use client.jobs.list(state='succeeded')", "arq"),
    "job": ("use client.jobs.handle(id)", "saq"),
    "apply": ("use client.task(name).submit(...) and its result()", "saq"),
    "map": ("use client.task(name).map(calls)", "saq"),
    "add_job": ("use client.schedules.add(...)", "apscheduler"),
    "remove_job": ("use client.schedules.remove(name)", "apscheduler"),
    "pause_job": ("use client.schedules.pause(name)", "apscheduler"),
    "resume_job": ("use client.schedules.resume(name)", "apscheduler"),
    "get_jobs": ("use client.schedules.list() or client.jobs.list()", "apscheduler"),
    "task": ("use client.task(name).blocking", "celery"),
}
"""Methods of a client, or of `client.blocking`."""

APP_TERMS: PeerTerms = {
    "conf": ("use the options of App, app.queue and app.task, and JSQ_ variables", "celery"),
    "config_from_object": ("use the options of App, app.queue and app.task", "celery"),
    "autodiscover_tasks": ("use App(include=['shop.tasks', 'shop.mail.*'])", "celery"),
    "add_periodic_task": ("use app.schedule(...)", "celery"),
    "send_task": ("use app.client.task(name).submit(...)", "celery"),
    "signature": ("use app.client.task(name).s(...)", "celery"),
    "AsyncResult": ("use app.client.jobs.handle(id)", "celery"),
    "control": ("use app.client.jobs and app.client.queues", "celery"),
    "worker_main": ("run `jsq worker module:app`", "celery"),
    "enqueue": ("use task.submit(...), or app.client.task(name).submit(...)", ""),
    "periodic_task": ("use @app.cron(...) or @app.every(...)", "huey"),
    "context_task": ("use @app.task, and a first parameter of the type Context", "huey"),
    "lock_task": ("use unique= or per_key=", "huey"),
    "rate_limit": ("use rate= of app.task or app.queue", "huey"),
    "on_startup": ("use @app.on_start", ""),
    "on_shutdown": ("use @app.on_stop", "huey"),
    "signal": ("use on_failure= and on_dead= of a task, or job.events()", "huey"),
    "actor": ("use @app.task", "dramatiq"),
    "add_middleware": ("use App(middleware=[...])", ""),
    "on_event": ("use @app.on_start and @app.on_stop", "taskiq"),
    "with_middlewares": ("use App(middleware=[...])", "taskiq"),
    "with_result_backend": ("leave it out: results are in the records of jobs", "taskiq"),
    "startup": ("use app.connect()", "taskiq"),
    "shutdown": ("use app.close()", "taskiq"),
    "scheduled_job": ("use @app.cron(...) or @app.every(...)", "apscheduler"),
    "add_job": ("use app.schedule(...) or app.client.schedules.add(...)", "apscheduler"),
    "start": ("run `jsq worker module:app`", "apscheduler"),
}
"""Methods of an App."""

JOB_TERMS: PeerTerms = {
    "get": ("use .result(timeout=...)", ""),
    "ready": ("use .status(), whose state is final", "celery"),
    "successful": ("use .status(), whose state is 'succeeded'", "celery"),
    "failed": ("use .status(), whose state is 'failed'", "celery"),
    "state": ("use .status(), which has a state", "celery"),
    "traceback": ("use .status(), which has a traceback", "celery"),
    "revoke": ("use .cancel()", ""),
    "forget": ("use .remove()", "celery"),
    "return_value": ("use .result()", "rq"),
    "latest_result": ("use .result()", "rq"),
    "get_status": ("use .status(), which has a state", "rq"),
    "is_finished": ("use .status(), which has a state", "rq"),
    "is_failed": ("use .status(), which has a state", "rq"),
    "refresh": ("use .status(), which asks the server each time", ""),
    "requeue": ("use .retry()", "rq"),
    "delete": ("use .remove()", "rq"),
    "abort": ("use .cancel()", ""),
    "info": ("use .status()", "arq"),
    "result_info": ("use .status()", "arq"),
    "wait_result": ("use .result(timeout=...)", "taskiq"),
    "is_ready": ("use .status(), whose state is final", "taskiq"),
    "get_result": ("use .result(timeout=...)", ""),
}
"""Methods of the handle of a job."""

CONTEXT_TERMS: PeerTerms = {
    "request": ("use ctx.id, ctx.attempt and ctx.headers", "celery"),
    "retry": ("raise Retry(delay=...)", "celery"),
    "update_state": ("use ctx.progress(...) or ctx.checkpoint(...)", "celery"),
    "message": ("use ctx.job", "taskiq"),
    "reject": ("raise Reject(...)", "taskiq"),
    "requeue": ("raise Retry(...) or Snooze(...)", "taskiq"),
}
"""Attributes of the context of a running task."""

COMMAND_TERMS: PeerTerms = {
    "inspect": ("use `jsq worker ls`, `jsq queue stats` or `jsq job ls`", "celery"),
    "control": ("use `jsq job cancel` or `jsq queue update`", "celery"),
    "revoke": ("use `jsq job cancel ID`", "celery"),
    "call": ("use `jsq submit TASK`", "celery"),
    "result": ("use `jsq job result ID`", ""),
    "status": ("use `jsq worker ls`, or `jsq job get ID`", "celery"),
    "report": ("use `jsq version` and `jsq doctor`", "celery"),
    "beat": ("leave it out: the server holds schedules, and `jsq schedule ls` lists them", "celery"),
    "flower": ("use `jsq queue stats --watch` and `jsq worker ls`: jsq has no dashboard yet", "celery"),
    "multi": ("use `jsq worker --processes N`", "celery"),
    "shell": ("use Python: `python -i -m MODULE` has the App and its tasks", "celery"),
    "purge": ("use `jsq queue purge`", ""),
    "enqueue": ("use `jsq submit TASK`", "rq"),
    "requeue": ("use `jsq dead retry`", "rq"),
    "empty": ("use `jsq queue purge`", "rq"),
    "suspend": ("use `jsq queue pause`", "rq"),
    "info": ("use `jsq queue stats` and `jsq worker ls`", "rq"),
    "scheduler": ("leave it out: the server holds schedules, and `jsq schedule ls` lists them", "taskiq"),
}
"""Commands in the shell."""

FLAG_TERMS: PeerTerms = {
    "--app": ("write module:app as an argument", "celery"),
    "-A": ("write module:app as an argument", "celery"),
    "-Q": ("use --queues", "celery"),
    "-B": ("leave it out: the server holds schedules", "celery"),
    "--countdown": ("use --delay", "celery"),
    "--eta": ("use --at or --delay", "celery"),
    "--autoscale": ("use --concurrency", "celery"),
    "--pool": ("use executor= of a task", "celery"),
    "--max-memory-per-child": ("use --child-memory", "celery"),
    "--time-limit": ("use --timeout of `jsq submit`, or timeout= of a task", "celery"),
}
"""Options of a command in the shell, where jsq has none of that name."""


def peer_hint(terms: PeerTerms, name: str) -> str:
    """The advice for a name of another task queue, with the guide page; empty for other names."""
    if name not in terms:
        return ""
    instead, system = terms[name]
    return f"{instead}; see `jsq guide {page_of(system)}`"


def page_of(system: str) -> str:
    """The guide page for those who know a system; the index for terms of several systems."""
    return f"moving-from-{system}" if system else "moving"


def explain_missing(owner: type, terms: PeerTerms) -> None:
    """Let the error for an attribute that `owner` lacks name jsq's word for the terms of other task queues.

    Python calls `__getattr__` only after it has not found an attribute, so existing attributes cost nothing.
    It is set here, since type checkers accept every name on a class that defines it.
    """

    def refuse(instance: object, name: str) -> NoReturn:
        kind = type(instance).__name__
        hint = peer_hint(terms, name)
        if hint:
            raise NoSuchMethod(f"{kind} has no {name}: {hint}", name=name)
        raise AttributeError(f"{kind!r} object has no attribute {name!r}", name=name, obj=instance)

    setattr(owner, "__getattr__", refuse)  # noqa: B010 -- see above
