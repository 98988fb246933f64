"""Roles: what one who submits, works, looks on or administers may ask of the server, queue by queue.

NATS checks which subjects a user publishes to, but not where he has the answers sent. In one account this
undoes every list of subjects: who may store a message and have it sent to him can have the server send it to
another queue, or to the call that purges one. So each user but an admin has an account of his own. It
holds nothing, and reaches into the account of the namespace by the imports of his roles alone; an answer ends
where he is. The same subjects are his permissions, so that a refusal is told at once and by name.

What a role cannot prevent: a submitter of a queue cancels a waiting job by writing its record, so it may
write any record of that queue; by a header of NATS it may empty what is delayed there. A worker of a queue
may write any record, result and dead letter of its jobs. Ids of the callers' own, the presence of workers,
and what is left of the rates of tasks and keys are shared by the namespace.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from jsq.broker.topology.configs import TICKS_CONSUMER, WAKEUPS, shared_configs
from jsq.broker.topology.inventory import inventory_advisories
from jsq.broker.topology.subjects import CANCELLED, PROGRESS, RESULT, Subjects
from jsq.codec.subject_token import ANY
from jsq.errors import BadName, BadOption
from jsq.model.checkpoint import CHECKPOINT
from jsq.model.job import check_queue

Role = Literal["submitter", "worker", "observer", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)

ALL = "*"
"""In the place of a queue: all of them, those that are not made yet too."""

USER_RULE = "1 to 32 letters, digits, _ or -, starting with a letter"
_user = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}", re.ASCII)
_nkey = re.compile(r"U[A-Z2-7]{55}", re.ASCII)


@dataclass(frozen=True, slots=True)
class SubjectPermissions:
    """Subjects: those that are asked, by whether one answer comes or many, and those that are heard."""

    requests: tuple[str, ...] = ()
    streamed_requests: tuple[str, ...] = ()
    subscriptions: tuple[str, ...] = ()

    def __add__(self, other: "SubjectPermissions") -> "SubjectPermissions":
        return SubjectPermissions(
            self.requests + other.requests,
            self.streamed_requests + other.streamed_requests,
            self.subscriptions + other.subscriptions,
        )

    def pruned(self) -> "SubjectPermissions":
        """The same without what stands twice, or within something wider."""
        return SubjectPermissions(
            drop_covered(self.requests),
            drop_covered(self.streamed_requests),
            drop_covered(self.subscriptions),
        )


@dataclass(frozen=True, slots=True)
class Grant:
    """A role for some queues. An admin's is for all. Raises `BadOption`, `BadName`."""

    role: Role
    queues: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise BadOption("role", self.role, f"must be one of {', '.join(ROLES)}")
        for queue in self.queues:
            if queue != ALL:
                check_queue(queue)
        if not self.queues and self.role != "admin":
            raise BadOption("queues", self.queues, f"must name at least one queue for a {self.role}")
        if self.role == "worker" and ALL in self.queues:
            raise BadOption(
                "queue", ALL, "must be named for a worker, which may purge the delayed jobs of its queues"
            )


@dataclass(frozen=True, slots=True)
class User:
    """Who logs in: by the public `nkey` if it has one, else by a password from the environment.

    Raises `BadName`, `BadOption`.
    """

    name: str
    grants: tuple[Grant, ...]
    nkey: str = ""

    def __post_init__(self) -> None:
        if not _user.fullmatch(self.name):
            raise BadName("user", self.name, USER_RULE)
        if not self.grants:
            raise BadOption("user", self.name, "must have a role")
        if self.nkey and not _nkey.fullmatch(self.nkey):
            raise BadOption(
                "nkey", f"{self.nkey[:1]}...", "must be the public key of a user: U and 55 characters"
            )

    @property
    def is_admin(self) -> bool:
        return any(grant.role == "admin" for grant in self.grants)

    @property
    def inbox(self) -> str:
        """What the subjects of his answers begin with; see `Login.inbox_prefix`."""
        return f"_INBOX_{self.name}"

    @property
    def variable(self) -> str:
        """The environment variable that holds his password where the server starts."""
        return f"{self.name.replace('-', '_').upper()}_PASSWORD"

    @property
    def description(self) -> str:
        return "; ".join(
            f"{grant.role} of {', '.join('all queues' if queue == ALL else queue for queue in grant.queues)}"
            if grant.queues
            else grant.role
            for grant in self.grants
        )


def read_user(text: str, queues: Sequence[str], nkeys: Mapping[str, str]) -> User:
    """A user from `NAME=ROLE[:QUEUE,...][+ROLE...]`; `queues` are those of a role that names none."""
    name, equals, grants = text.partition("=")
    if not equals:
        raise BadOption(
            "user", text, "must be NAME=ROLE, such as web=submitter or web=submitter:mail+observer:*"
        )
    return User(name, tuple(read_grant(one, queues) for one in grants.split("+")), nkeys.get(name, ""))


def read_grant(text: str, queues: Sequence[str]) -> Grant:
    role, _, named = text.partition(":")
    if role not in ROLES:
        raise BadOption("role", role, f"must be one of {', '.join(ROLES)}")
    if role == "admin":
        return Grant(role)
    return Grant(role, tuple(named.split(",")) if named else tuple(queues))


# -- what each role reaches ------------------------------------------------------------------------------


def user_permissions(subjects: Subjects, user: User) -> SubjectPermissions:
    """All that a user's roles reach."""
    found = SubjectPermissions(subscriptions=(f"{user.inbox}.>",))
    for grant in user.grants:
        if grant.role == "admin":
            found += admin_permissions(subjects)
        for queue in grant.queues:
            found += _of_queue[grant.role](subjects, queue)
    return found.pruned()


def submitter_permissions(subjects: Subjects, queue: str) -> SubjectPermissions:
    """Submits, looks at a job by its id, waits for it, and cancels it."""
    ids, keys = subjects.own_id(ANY), subjects.key("ids", "u.*")
    return reader_permissions(subjects, queue) + SubjectPermissions(
        requests=(
            subjects.ready(queue, "*", ANY),
            subjects.scheduled(queue, ANY),
            subjects.groups.job(queue, "*", ANY),
            subjects.groups.created(queue),
            subjects.record(queue, ANY),
            f"{subjects.record(queue, ANY)}.{CANCELLED}",
            subjects.cancel(queue),
            ids,
            last_message_request(subjects.streams.bucket("ids"), ids),
            keys,
            last_message_request(subjects.streams.bucket("ids"), keys),
        )
    )


def worker_permissions(subjects: Subjects, queue: str) -> SubjectPermissions:
    """Takes jobs and settles them, writes what happens to them and what they keep, writes dead letters.

    Their callbacks it submits to these queues; to another, it needs to be a submitter of that. It takes the
    ticks of schedules too, submits their jobs, and has the next ones held.
    """
    ready, keys = subjects.streams.ready(queue), subjects.key("ids", "u.*")
    return (
        reader_permissions(subjects, queue)
        + admission_permissions(subjects, queue)
        + tick_permissions(subjects, queue)
        + limit_permissions(subjects, queue)
        + SubjectPermissions(
            requests=(
                f"$JS.ACK.{ready}.>",
                f"$JS.API.DIRECT.GET.{ready}",
                f"$JS.API.STREAM.MSG.GET.{ready}",
                f"$JS.API.STREAM.PURGE.{subjects.streams.scheduled(queue)}",
                subjects.ready(queue, "*", ANY),
                subjects.scheduled(queue, ANY),
                subjects.record(queue, ANY),
                f"{subjects.record(queue, ANY)}.>",
                last_message_request(subjects.streams.records, subjects.checkpoint(queue, ANY, ">")),
                subjects.dead(queue, "*", ANY),
                subjects.key("workers", "*"),
                subjects.key("workers", f"forward.{queue}"),
                keys,
                last_message_request(subjects.streams.bucket("ids"), keys),
                subjects.holders(queue),
            ),
            streamed_requests=(
                f"$JS.API.CONSUMER.MSG.NEXT.{ready}.*",
                f"$JS.API.DIRECT.GET.{subjects.streams.scheduled(queue)}",
            ),
            subscriptions=worker_subscriptions(subjects, queue),
        )
    )


def worker_subscriptions(subjects: Subjects, queue: str) -> tuple[str, ...]:
    """Hears of cancels, of changes of its queue, and of streams that are deleted under it."""
    names = subjects.streams
    shared = [config["name"] for config in shared_configs(subjects, 1)]
    own = (names.ready(queue), names.scheduled(queue), names.groups(queue), names.group_state(queue))
    return (
        subjects.cancel(queue),
        f"{subjects.stored_record(queue, ANY)}.{CANCELLED}",
        subjects.groups.created(queue),
        subjects.refresh(queue),
        subjects.holders(queue),
        *inventory_advisories(shared, own),
    )


def tick_permissions(subjects: Subjects, queue: str) -> SubjectPermissions:
    """Takes the ticks of schedules, submits their jobs, cancels what overlaps, has the next ones held."""
    later, schedule = subjects.streams.scheduled(queue), subjects.schedule(queue, ANY)
    return SubjectPermissions(
        requests=(
            f"$JS.ACK.{later}.{TICKS_CONSUMER}.>",
            subjects.cancel(queue),
            subjects.next_tick(queue, ANY),
            last_message_request(later, subjects.next_tick(queue, ANY)),
            schedule,
            last_message_request(subjects.streams.bucket("schedules"), schedule),
        ),
        streamed_requests=(f"$JS.API.CONSUMER.MSG.NEXT.{later}.{TICKS_CONSUMER}",),
    )


def limit_permissions(subjects: Subjects, queue: str) -> SubjectPermissions:
    """Keeps to rates, to pauses and to the slots of a queue, and follows what changes of them."""
    changed = subjects.limits.slots_changed(queue)
    records = (*rate_limit_keys(subjects, queue), subjects.limits.slots(queue))
    reads = (last_message_request(subjects.streams.bucket("limits"), record) for record in records)
    return SubjectPermissions(
        requests=(*records, *reads, subjects.limits.pauses(queue), subjects.refresh(queue), changed),
        subscriptions=(subjects.refresh(queue), changed),
    )


def admission_permissions(subjects: Subjects, queue: str) -> SubjectPermissions:
    """Lets keyed jobs onto their queue in turn."""
    line, turn = subjects.streams.groups(queue), subjects.streams.group_state(queue)
    return SubjectPermissions(
        requests=(
            f"$JS.ACK.{turn}.>",
            f"$JS.API.STREAM.MSG.GET.{line}",
            f"$JS.API.STREAM.MSG.GET.{turn}",
            f"$JS.API.STREAM.MSG.DELETE.{line}",
            subjects.groups.state(queue, "*"),
            subjects.groups.job(queue, "*", ANY),
            subjects.groups.created(queue),
        ),
        streamed_requests=(
            f"$JS.API.CONSUMER.MSG.NEXT.{turn}.{WAKEUPS}",
            f"$JS.API.DIRECT.GET.{line}",
        ),
    )


def observer_permissions(subjects: Subjects, queue: str) -> SubjectPermissions:
    """Reads jobs, the messages that wait, and dead letters. Of all queues: lists of them too.

    An observer of all queues reads the whole event log, if there is one. An observer of one queue reads the
    last revision that the log has of a job: a request for more can name any queue.
    """
    found = reader_permissions(subjects, queue) + SubjectPermissions(
        requests=(
            last_message_request(subjects.streams.events, subjects.event(queue, ANY)),
            last_message_request(subjects.streams.records, subjects.dead(queue, "*", ANY)),
            last_message_request(subjects.streams.bucket("schedules"), subjects.schedule(queue, ANY)),
        ),
        streamed_requests=tuple(f"$JS.API.DIRECT.GET.{stream}" for stream in job_streams(subjects, queue)),
    )
    if queue == ALL:
        found += SubjectPermissions(requests=("$JS.API.INFO", "$JS.API.DIRECT.GET.*.>"))
    return found


def reader_permissions(subjects: Subjects, queue: str) -> SubjectPermissions:
    """Sees a job by its id, what happens to it, and a queue's numbers."""
    ready, later, line = job_streams(subjects, queue)
    turn = ALL if queue == ALL else subjects.streams.group_state(queue)
    asks = (
        last_message_request(subjects.streams.records, subjects.record(queue, ANY)),
        last_message_request(subjects.streams.records, f"{subjects.record(queue, ANY)}.{PROGRESS}"),
        last_message_request(subjects.streams.records, f"{subjects.record(queue, ANY)}.{RESULT}"),
        last_message_request(subjects.streams.records, subjects.checkpoint(queue, ANY, CHECKPOINT)),
        last_message_request(ready, subjects.ready(queue, "*", ANY)),
        last_message_request(later, subjects.scheduled(queue, ANY)),
        last_message_request(later, subjects.due(queue, "*", ANY)),
        last_message_request(line, subjects.groups.job(queue, "*", ANY)),
        last_message_request(later, subjects.groups.due(queue, "*", ANY)),
        f"$JS.API.STREAM.INFO.{line}",
        f"$JS.API.STREAM.INFO.{turn}",
        f"$JS.API.CONSUMER.INFO.{turn}.*",
        last_message_request(subjects.streams.bucket("limits"), subjects.limits.pauses(queue)),
        f"$JS.API.STREAM.INFO.{ready}",
        f"$JS.API.STREAM.INFO.{later}",
        f"$JS.API.CONSUMER.INFO.{ready}.*",
        f"$JS.API.CONSUMER.INFO.{later}.*",
    )
    everywhere = ("$JS.API.STREAM.LIST", "$JS.API.STREAM.NAMES") if queue == ALL else ()
    return SubjectPermissions(
        requests=asks + everywhere,
        subscriptions=(
            subjects.stored_record(queue, ANY),
            f"{subjects.stored_record(queue, ANY)}.{PROGRESS}",
        ),
    )


def admin_permissions(subjects: Subjects) -> SubjectPermissions:
    """Everything in the account of the namespace, but for the others' inboxes."""
    ours = f"{subjects.namespace}.>"
    return SubjectPermissions(
        requests=(ours, "$JS.API.>", "$JS.ACK.>", "$KV.>", "$O.>"), subscriptions=(ours, "$JS.EVENT.>")
    )


_of_queue = {
    "submitter": submitter_permissions,
    "worker": worker_permissions,
    "observer": observer_permissions,
}


def job_streams(subjects: Subjects, queue: str) -> tuple[str, str, str]:
    """Where the jobs of a queue stand; for all queues, what stands for any stream."""
    if queue == ALL:
        return ALL, ALL, ALL
    return subjects.streams.ready(queue), subjects.streams.scheduled(queue), subjects.streams.groups(queue)


def rate_limit_keys(subjects: Subjects, queue: str) -> tuple[str, ...]:
    """The records of the limiters that a queue's worker writes: of the queue, of any task and any key."""
    return (
        subjects.limits.queue_rate(queue),
        subjects.limits.task_rate("*"),
        subjects.key("limits", "rate.key.*.*"),
    )


def last_message_request(stream: str, subject: str) -> str:
    """The request for the last message on a subject of a stream."""
    return f"$JS.API.DIRECT.GET.{stream}.{subject}"


def drop_covered(subjects: Iterable[str]) -> tuple[str, ...]:
    """Subjects without those that another one covers, in their order."""
    once = list(dict.fromkeys(subjects))
    return tuple(one for one in once if not any(other != one and covers(other, one) for other in once))


def covers(wide: str, narrow: str) -> bool:
    """Whether a subject with wildcards holds all of another."""
    theirs = narrow.split(".")
    for place, token in enumerate(wide.split(".")):
        if token == ">":
            return len(theirs) > place
        if place >= len(theirs) or theirs[place] == ">" or (token not in ("*", theirs[place])):
            return False
    return len(theirs) == wide.count(".") + 1
