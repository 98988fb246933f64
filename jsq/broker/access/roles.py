"""Roles: the permissions of submitters, workers, observers and admins on the server, queue by queue.

NATS checks the subject that a client publishes to, but not the reply subject. Within one account that defeats
every list of subjects. A client that may store a message and request it can name another queue, or the API
call that purges one, as the reply subject; the server then sends the stored message there.

So each user that is not an admin has an account of its own. That account holds no streams. It reaches the
account of the namespace only through the imports that its roles need, and a reply ends in the account of the
user. The same subjects are the permissions of the user, so that the server refuses a request at once and
names its subject.

Roles do not prevent the following. A submitter of a queue cancels a waiting job by writing its record, so it
may write any record of that queue. With a header of NATS (`Nats-Rollup`) it may delete the delayed jobs of
the queue. A worker of a queue may write any record, result and dead letter of the queue's jobs. All users of
the namespace share the ids that callers chose, the presence of workers, and the state of the rate limits of
tasks and keys.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from jsq.broker.topology.configs import DUE_CONSUMER, TICKS_CONSUMER, WAKEUPS, shared_configs
from jsq.broker.topology.inventory import inventory_advisories
from jsq.broker.topology.subjects import CANCELLED, PROGRESS, RESULT, Subjects, flow_key
from jsq.codec.subject_token import ANY
from jsq.errors import BadName, BadOption
from jsq.model.checkpoint import CHECKPOINT
from jsq.model.job import check_queue

Role = Literal["submitter", "worker", "observer", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)

ALL_QUEUES = "*"
"""In place of the name of a queue: all queues, including those that are created later."""

USER_RULE = "1 to 32 letters, digits, _ or -, starting with a letter"
_user_pattern = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}", re.ASCII)
_nkey_pattern = re.compile(r"U[A-Z2-7]{55}", re.ASCII)


@dataclass(frozen=True, slots=True)
class SubjectPermissions:
    """The subjects that a user may publish to and subscribe to.

    `requests` have one reply at most, `streamed_requests` have several.
    """

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
        """The same permissions without the subjects that another subject of the same kind covers."""
        return SubjectPermissions(
            drop_covered(self.requests),
            drop_covered(self.streamed_requests),
            drop_covered(self.subscriptions),
        )


@dataclass(frozen=True, slots=True)
class Grant:
    """A role for some queues. The role `admin` is for all queues. Raises `BadOption` and `BadName`."""

    role: Role
    queues: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise BadOption("role", self.role, f"must be one of {', '.join(ROLES)}")
        for queue in self.queues:
            if queue != ALL_QUEUES:
                check_queue(queue)
        if not self.queues and self.role != "admin":
            raise BadOption("queues", self.queues, f"must name at least one queue for a {self.role}")
        if self.role == "worker" and ALL_QUEUES in self.queues:
            raise BadOption(
                "queue",
                ALL_QUEUES,
                "must be named for a worker, because a worker may purge the delayed jobs of its queues",
            )


@dataclass(frozen=True, slots=True)
class User:
    """A user. It logs in with the nkey whose public key is `nkey`, or else with a password.

    Raises `BadName` and `BadOption`.
    """

    name: str
    grants: tuple[Grant, ...]
    nkey: str = ""

    def __post_init__(self) -> None:
        if not _user_pattern.fullmatch(self.name):
            raise BadName("user", self.name, USER_RULE)
        if not self.grants:
            raise BadOption("user", self.name, "must have a role")
        if self.nkey and not _nkey_pattern.fullmatch(self.nkey):
            raise BadOption(
                "nkey", f"{self.nkey[:1]}...", "must be the public key of a user: U and 55 characters"
            )

    @property
    def is_admin(self) -> bool:
        return any(grant.role == "admin" for grant in self.grants)

    @property
    def inbox(self) -> str:
        """The prefix of the subjects of its replies; see `Login.inbox_prefix`."""
        return f"_INBOX_{self.name}"

    @property
    def variable(self) -> str:
        """The environment variable of the server that holds the password of the user."""
        return f"{self.name.replace('-', '_').upper()}_PASSWORD"

    @property
    def description(self) -> str:
        return "; ".join(
            f"{grant.role} of {', '.join(queue_text(queue) for queue in grant.queues)}"
            if grant.queues
            else grant.role
            for grant in self.grants
        )


def queue_text(queue: str) -> str:
    """The queue of a grant as text for people."""
    return "all queues" if queue == ALL_QUEUES else queue


def read_user(text: str, queues: Sequence[str], nkeys: Mapping[str, str]) -> User:
    """A user from `NAME=ROLE[:QUEUE,...][+ROLE...]`. A role that names no queue gets `queues`."""
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


# -- the permissions of each role ------------------------------------------------------------------------


def user_permissions(subjects: Subjects, user: User) -> SubjectPermissions:
    """The permissions that the roles of a user need."""
    found = SubjectPermissions(subscriptions=(f"{user.inbox}.>",))
    for grant in user.grants:
        if grant.role == "admin":
            found += admin_permissions(subjects)
        for queue in grant.queues:
            found += _permissions_by_role[grant.role](subjects, queue)
    return found.pruned()


def submitter_permissions(subjects: Subjects, queue: str) -> SubjectPermissions:
    """The permissions to submit a job, to read it by its id, to wait for it, and to cancel it."""
    ids, keys = subjects.own_id(ANY), subjects.unique_key("*")
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
    """The permissions to run the jobs of a queue.

    A worker pulls and settles jobs, and writes their records, checkpoints, results and dead letters. It
    submits callbacks to the same queue; for callbacks of other queues it must also be a submitter of these.
    It receives the ticks of schedules, submits their jobs, and stores the next ticks. It stores the joins of
    the workflows of its queue, whose nodes must be on the same queue.
    """
    ready, keys = subjects.streams.ready(queue), subjects.unique_key("*")
    flows = flow_key(subjects, queue, ANY, ">")
    return (
        reader_permissions(subjects, queue)
        + admission_permissions(subjects, queue)
        + tick_permissions(subjects, queue)
        + due_permissions(subjects, queue)
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
                subjects.key("workers", f"wakeups.{queue}"),
                keys,
                last_message_request(subjects.streams.bucket("ids"), keys),
                subjects.holders(queue),
                flows,
                last_message_request(subjects.streams.bucket("flows"), flows),
            ),
            streamed_requests=(
                f"$JS.API.CONSUMER.MSG.NEXT.{ready}.*",
                f"$JS.API.DIRECT.GET.{subjects.streams.scheduled(queue)}",
            ),
            subscriptions=worker_subscriptions(subjects, queue),
        )
    )


def worker_subscriptions(subjects: Subjects, queue: str) -> tuple[str, ...]:
    """The subscriptions of a worker: cancels, changes of its queue, and advisories of its streams."""
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


def due_permissions(subjects: Subjects, queue: str) -> SubjectPermissions:
    """The permissions to receive due jobs; a worker may store jobs in its queues and key groups anyway."""
    scheduled = subjects.streams.scheduled(queue)
    return SubjectPermissions(
        requests=(f"$JS.ACK.{scheduled}.{DUE_CONSUMER}.>",),
        streamed_requests=(f"$JS.API.CONSUMER.MSG.NEXT.{scheduled}.{DUE_CONSUMER}",),
    )


def tick_permissions(subjects: Subjects, queue: str) -> SubjectPermissions:
    """The permissions to receive ticks, to cancel jobs that overlap, and to store the next ticks."""
    scheduled, schedule = subjects.streams.scheduled(queue), subjects.schedule(queue, ANY)
    return SubjectPermissions(
        requests=(
            f"$JS.ACK.{scheduled}.{TICKS_CONSUMER}.>",
            subjects.cancel(queue),
            subjects.next_tick(queue, ANY),
            last_message_request(scheduled, subjects.next_tick(queue, ANY)),
            schedule,
            last_message_request(subjects.streams.bucket("schedules"), schedule),
        ),
        streamed_requests=(f"$JS.API.CONSUMER.MSG.NEXT.{scheduled}.{TICKS_CONSUMER}",),
    )


def limit_permissions(subjects: Subjects, queue: str) -> SubjectPermissions:
    """The permissions to use the rate limits, pauses and slots of a queue, and to learn of changes."""
    changed = subjects.limits.slots_changed(queue)
    records = (*rate_limit_keys(subjects, queue), subjects.limits.slots(queue))
    reads = (last_message_request(subjects.streams.bucket("limits"), record) for record in records)
    return SubjectPermissions(
        requests=(*records, *reads, subjects.limits.pauses(queue), subjects.refresh(queue), changed),
        subscriptions=(subjects.refresh(queue), changed),
    )


def admission_permissions(subjects: Subjects, queue: str) -> SubjectPermissions:
    """The permissions to admit the jobs of key groups to their queue."""
    groups, group_state = subjects.streams.groups(queue), subjects.streams.group_state(queue)
    return SubjectPermissions(
        requests=(
            f"$JS.ACK.{group_state}.>",
            f"$JS.API.STREAM.MSG.GET.{groups}",
            f"$JS.API.STREAM.MSG.GET.{group_state}",
            f"$JS.API.STREAM.MSG.DELETE.{groups}",
            subjects.groups.state(queue, "*"),
            subjects.groups.job(queue, "*", ANY),
            subjects.groups.created(queue),
        ),
        streamed_requests=(
            f"$JS.API.CONSUMER.MSG.NEXT.{group_state}.{WAKEUPS}",
            f"$JS.API.DIRECT.GET.{groups}",
        ),
    )


def observer_permissions(subjects: Subjects, queue: str) -> SubjectPermissions:
    """The permissions to read jobs, waiting messages and dead letters; for all queues, also to list them.

    An observer of all queues reads the whole event log, if there is one. An observer of one queue reads only
    the last revision of a job from the log, because a request for more can name any queue.
    """
    found = reader_permissions(subjects, queue) + SubjectPermissions(
        requests=(
            last_message_request(subjects.streams.events, subjects.event(queue, ANY)),
            last_message_request(subjects.streams.records, subjects.dead(queue, "*", ANY)),
            last_message_request(subjects.streams.bucket("schedules"), subjects.schedule(queue, ANY)),
        ),
        streamed_requests=tuple(f"$JS.API.DIRECT.GET.{stream}" for stream in job_streams(subjects, queue)),
    )
    if queue == ALL_QUEUES:
        found += SubjectPermissions(requests=("$JS.API.INFO", "$JS.API.DIRECT.GET.*.>"))
    return found


def reader_permissions(subjects: Subjects, queue: str) -> SubjectPermissions:
    """The permissions to read a job by its id, to follow its events, and to read the numbers of a queue."""
    ready, scheduled, groups = job_streams(subjects, queue)
    group_state = ALL_QUEUES if queue == ALL_QUEUES else subjects.streams.group_state(queue)
    requests = (
        last_message_request(subjects.streams.records, subjects.record(queue, ANY)),
        last_message_request(subjects.streams.records, f"{subjects.record(queue, ANY)}.{PROGRESS}"),
        last_message_request(subjects.streams.records, f"{subjects.record(queue, ANY)}.{RESULT}"),
        last_message_request(subjects.streams.records, subjects.checkpoint(queue, ANY, CHECKPOINT)),
        last_message_request(ready, subjects.ready(queue, "*", ANY)),
        last_message_request(scheduled, subjects.scheduled(queue, ANY)),
        last_message_request(scheduled, subjects.due(queue, "*", ANY)),
        last_message_request(groups, subjects.groups.job(queue, "*", ANY)),
        last_message_request(scheduled, subjects.groups.due(queue, "*", ANY)),
        f"$JS.API.STREAM.INFO.{groups}",
        f"$JS.API.STREAM.INFO.{group_state}",
        f"$JS.API.CONSUMER.INFO.{group_state}.*",
        last_message_request(subjects.streams.bucket("limits"), subjects.limits.pauses(queue)),
        f"$JS.API.STREAM.INFO.{ready}",
        f"$JS.API.STREAM.INFO.{scheduled}",
        f"$JS.API.CONSUMER.INFO.{ready}.*",
        f"$JS.API.CONSUMER.INFO.{scheduled}.*",
    )
    lists = ("$JS.API.STREAM.LIST", "$JS.API.STREAM.NAMES") if queue == ALL_QUEUES else ()
    return SubjectPermissions(
        requests=requests + lists,
        subscriptions=(
            subjects.stored_record(queue, ANY),
            f"{subjects.stored_record(queue, ANY)}.{PROGRESS}",
        ),
    )


def admin_permissions(subjects: Subjects) -> SubjectPermissions:
    """The permissions for all of the account of the namespace, except for the inboxes of other users."""
    own = f"{subjects.namespace}.>"
    return SubjectPermissions(
        requests=(own, "$JS.API.>", "$JS.ACK.>", "$KV.>", "$O.>"), subscriptions=(own, "$JS.EVENT.>")
    )


_permissions_by_role = {
    "submitter": submitter_permissions,
    "worker": worker_permissions,
    "observer": observer_permissions,
}


def job_streams(subjects: Subjects, queue: str) -> tuple[str, str, str]:
    """The READY, SCHEDULED and GROUPS streams of a queue; for all queues, a wildcard for each of them."""
    if queue == ALL_QUEUES:
        return ALL_QUEUES, ALL_QUEUES, ALL_QUEUES
    return subjects.streams.ready(queue), subjects.streams.scheduled(queue), subjects.streams.groups(queue)


def rate_limit_keys(subjects: Subjects, queue: str) -> tuple[str, ...]:
    """The keys of the rate limits that a worker of a queue writes: of the queue, of any task and any key."""
    return (
        subjects.limits.queue_rate(queue),
        subjects.limits.task_rate("*"),
        subjects.key("limits", "rate.key.*.*"),
    )


def last_message_request(stream: str, subject: str) -> str:
    """The request for the last message on a subject of a stream."""
    return f"$JS.API.DIRECT.GET.{stream}.{subject}"


def drop_covered(subjects: Iterable[str]) -> tuple[str, ...]:
    """Subjects without duplicates and without those that another one covers, in their order."""
    distinct = list(dict.fromkeys(subjects))
    return tuple(
        one for one in distinct if not any(other != one and covers(other, one) for other in distinct)
    )


def covers(wide: str, narrow: str) -> bool:
    """Whether each subject that `narrow` matches is also matched by `wide`."""
    tokens = narrow.split(".")
    for index, token in enumerate(wide.split(".")):
        if token == ">":
            return len(tokens) > index
        if index >= len(tokens) or tokens[index] == ">" or (token not in ("*", tokens[index])):
            return False
    return len(tokens) == wide.count(".") + 1
