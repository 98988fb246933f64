"""A client submits jobs and looks after them. What the command line can do, it does through this."""

import asyncio
import contextlib
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self, TypeAlias, TypeVar, Unpack

from jsq.broker import Broker, QueueStats
from jsq.broker.access.accounts import Roles
from jsq.broker.health.doctor import examine
from jsq.broker.health.finding import Finding
from jsq.broker.jobs.backpressure import WaitForRoom
from jsq.broker.maintenance.sweeper import MIN_AGE
from jsq.broker.operations.cancel import CancelCount
from jsq.broker.operations.dead_letters import DeadLetter, DeadLetterCriteria
from jsq.broker.submit.unique import Placed, UniqueSubmit
from jsq.broker.topology.streams import Change
from jsq.broker.topology.subjects import Subjects
from jsq.client.bulk import submit_bulk
from jsq.client.handle import JobHandle, record
from jsq.client.map import MapOptions, Mapped, Results, Submit
from jsq.client.schedules import Schedules
from jsq.client.sync import BlockingWrapper, Portal, SyncJobHandle, each, twin
from jsq.codec.signature import Signature, pack_call
from jsq.errors import (
    BadArguments,
    BadOption,
    ForeignStream,
    JobNotFound,
    NotAllowed,
    PartlySubmitted,
    WrongState,
    seconds,
)
from jsq.model.event import FINAL_STATES, LoggedEvent
from jsq.model.expiry import expiry_time
from jsq.model.job import DEFAULT_QUEUE, Job, JobRecord, check_id, check_queue, check_task, new_id
from jsq.model.job_filter import DELAYED_STATES, UNFINISHED_STATES, JobFilter, read_criteria
from jsq.model.key_group import check_key
from jsq.model.options import Options, SubmitOptions, check_key_given, read_options
from jsq.model.pause import Pause, read_pause_end
from jsq.model.repair import RepairResult
from jsq.model.schedule import Schedule
from jsq.model.unique import arguments_key, unique_hash, unique_request
from jsq.settings import Login, QueueChanges, QueueSettings, Replicas, read_login, read_namespace

T = TypeVar("T")

Call: TypeAlias = Sequence[object] | Mapping[str, object]
"""The arguments of one of many jobs: a list of positional ones, or a dictionary of named ones."""


class Client:
    """A connection to jsq in one namespace, opened on first use: one for each event loop that uses it.

    `url` may name several servers, joined by commas; left out, it is `JSQ_URL`, then the nats CLI's context,
    then localhost. `namespace`, left out, is `JSQ_NAMESPACE`, then `jsq`. Methods raise what `jsq.errors`
    lists; a server that cannot be reached is told within 5 s.
    """

    def __init__(
        self, url: str | Login | None = None, *, namespace: str | None = None, name: str = "jsq"
    ) -> None:
        self.namespace = read_namespace(namespace)
        self.name = name
        self.portal = Portal(self._disconnect)
        self.schedules = Schedules(self.broker)
        self.blocking = Blocking(self, self.portal)
        self._login = url if isinstance(url, Login) else None
        self._url = url if isinstance(url, str) else None
        self._brokers: dict[asyncio.AbstractEventLoop, asyncio.Task[Broker]] = {}

    # -- the connection ----------------------------------------------------------------------------------

    @property
    def login(self) -> Login:
        """Where the server is and who we are."""
        if self._login is None:
            self._login = read_login(self._url)
        return self._login

    async def connect(self) -> Self:
        await self.broker()
        return self

    async def close(self) -> None:
        """Close this loop's connection, and that of the blocking calls."""
        await self._disconnect()
        if self.portal.is_open:
            await asyncio.to_thread(self.portal.stop)

    async def _disconnect(self) -> None:
        opened = self._brokers.pop(asyncio.get_running_loop(), None)
        if opened is not None:
            with contextlib.suppress(Exception):
                await (await opened).close()

    async def __aenter__(self) -> Self:
        return await self.connect()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def broker(self) -> Broker:
        """This loop's connection. Raises `BrokerUnavailable`, `NotAllowed`, `ServerTooOld`."""
        found = self._open_broker()
        if found is not None:
            return found
        loop = asyncio.get_running_loop()
        opened = self._brokers.get(loop)
        if opened is None or opened.done():
            self._forget_ended_loops()
            opened = loop.create_task(Broker.connect(self.login, namespace=self.namespace, name=self.name))
            self._brokers[loop] = opened
        return await asyncio.shield(opened)

    def _open_broker(self) -> Broker | None:
        """This loop's connection, if it stands."""
        opened = self._brokers.get(asyncio.get_running_loop())
        if opened is None or not opened.done() or opened.cancelled() or opened.exception():
            return None
        found = opened.result()
        return None if found.wire.closed else found

    def _forget_ended_loops(self) -> None:
        """A connection whose loop has ended is of no use, and holds a descriptor."""
        for loop in [loop for loop in self._brokers if loop.is_closed()]:
            del self._brokers[loop]

    # -- submit ------------------------------------------------------------------------------------------

    async def submit(self, task: str, /, *args: object, **arguments: object) -> JobHandle[Any]:
        """Submit a job by the name of its task, whose code need not be here."""
        return await self.send(check_task(task), pack_call(args, arguments), Options())

    def delay(self, task: str, /, *args: object, **arguments: object) -> SyncJobHandle[Any]:
        """The blocking twin of `submit`."""
        return SyncJobHandle(self.portal.call(self.submit(task, *args, **arguments)), self.portal)

    def delay_many(
        self,
        task: str,
        calls: Iterable[Call],
        *,
        ids: Sequence[str] | None = None,
        all_or_nothing: bool = False,
    ) -> list[SyncJobHandle[Any]]:
        """The blocking twin of `submit_many`."""
        asked = self.submit_many(task, calls, ids=ids, all_or_nothing=all_or_nothing)
        return [SyncJobHandle(handle, self.portal) for handle in self.portal.call(asked)]

    def options(self, **options: Unpack[SubmitOptions]) -> "Submission":
        """Options for one submit: `client.options(delay=60).submit("emails.send", "a@b.c")`.

        What they are, `SubmitOptions` tells. Raises `BadOption`, `BadName`.
        """
        chosen = read_options(**options)
        check_key_given(chosen)
        return Submission(self, chosen)

    async def send(
        self, task: str, arguments: bytes, options: Options, *, signature: Signature | None = None
    ) -> JobHandle[Any]:
        """Submit a job whose arguments are packed, of a task whose name was checked."""
        job, due = ordered(options.id or new_id(), task, arguments, options)
        broker = self._open_broker() or await self.broker()
        if options.expires is not None:
            job = await expiring(broker, job, options.expires)
        if options.unique:
            order = order_of(job, due, options)
            return receipt(broker, await broker.unique.submit(order), signature)
        queue, duplicate = job.queue, False
        if options.id is None:
            await broker.jobs.submit(job, due, patience_of(options))
        else:
            queue, duplicate = await broker.jobs.submit_once(job, due, patience_of(options))
        return JobHandle(broker, job.id, queue, signature=signature, duplicate=duplicate)

    async def submit_many(
        self,
        task: str,
        calls: Iterable[Call],
        *,
        ids: Sequence[str] | None = None,
        all_or_nothing: bool = False,
    ) -> list[JobHandle[Any]]:
        """Submit a job for each call: a list of positional arguments, or named ones as a dictionary.

        All are checked before the first is sent; the handles come in the order of the calls. Ten thousand
        take a tenth of a second or so. Raises `BadArguments`; `PartlySubmitted` where some were not stored,
        as at a queue that became full, or may not have been: each error that is a `SubmitUnknown` has its id.

        With `all_or_nothing` the jobs stand all or none, whatever dies: 1,000 at most, of 32 MiB in all
        (`BadOption` beyond). Where nobody told which, it raises `BulkUnknown` with the `ids` of the jobs.

        `ids` are your own, one for each call. A job of this queue that has its id already is not submitted
        again, for the 7 days that the log goes back, and its handle is a `duplicate`: so a bulk that broke
        off may be submitted once more. Unlike the `id` of one submit they are not looked for on other queues.
        """
        packed = pack_each(task, calls, pack_call)
        return await self.send_many(
            check_task(task), packed, Options(), ids=ids, all_or_nothing=all_or_nothing
        )

    def map(
        self,
        task: str,
        calls: Iterable[object] | AsyncIterable[object],
        *,
        return_exceptions: bool = False,
        **how: Unpack[MapOptions],
    ) -> Results[Any]:
        """The results of a job for each call: `async for result in client.map("add", [(1, 2), (3, 4)])`, or
        all of them in a list with `await`.

        A call is a list of positional arguments, a dictionary of named ones, or else the one argument itself.
        Jobs are submitted a window at a time, so there may be any number of calls, from a generator too. The
        results come in the order of the calls, and cost no subscription each; see `MapOptions`.

        The first job that gave no result raises what `JobHandle.result` does, with `return_exceptions` that
        error comes in the place of the result. Raises what `submit_many` does when it comes to such a call.
        """
        return self.options().map(task, calls, return_exceptions=return_exceptions, **how)

    def delay_map(
        self,
        task: str,
        calls: Iterable[object] | AsyncIterable[object],
        *,
        return_exceptions: bool = False,
        **how: Unpack[MapOptions],
    ) -> Iterator[Any]:
        """The blocking twin of `map`: an iterator."""
        found = self.map(task, calls, return_exceptions=return_exceptions, **how)
        return each(found, self.portal)

    async def send_many(
        self,
        task: str,
        packed: Sequence[bytes],
        options: Options,
        *,
        signature: Signature | None = None,
        ids: Sequence[str] | None = None,
        anew: bool = False,
        all_or_nothing: bool = False,
    ) -> list[JobHandle[Any]]:
        """Submit jobs whose arguments are packed, of a task whose name was checked.

        Ids that are `anew` were made for these jobs, and never sent before.
        """
        check_many(options)
        if options.unique:
            check_each(options, ids, all_or_nothing)
            return await self.send_each(task, packed, [options] * len(packed), signature=signature)
        pattern, due = ordered("", task, b"", options)
        broker = await self.broker()
        if options.expires is not None:
            pattern = await expiring(broker, pattern, options.expires)
        return await submit_bulk(
            broker,
            pattern,
            packed,
            due,
            patience_of(options),
            ids=ids,
            anew=anew,
            all_or_nothing=all_or_nothing,
            signature=signature,
        )

    def mapped(
        self,
        options: Options,
        submit: Submit,
        calls: Iterable[object] | AsyncIterable[object],
        return_exceptions: bool,
        how: MapOptions,
    ) -> Mapped:
        """What is to be mapped. Raises `BadOption`."""
        check_many(options)
        if options.unique:
            check_each(options, [], False)
        queue = options.queue or DEFAULT_QUEUE
        return Mapped(self.broker, queue, submit, calls, return_exceptions=return_exceptions, **how)

    async def send_each(
        self,
        task: str,
        packed: Sequence[bytes],
        options: Sequence[Options],
        *,
        signature: Signature | None = None,
    ) -> list[JobHandle[Any]]:
        """Submit unique jobs, each by itself and with its own options; those of one key in their order."""
        broker = await self.broker()
        asked_for = []
        for arguments, own in zip(packed, options, strict=True):
            job, due = ordered(new_id(), task, arguments, own)
            if own.expires is not None:
                job = await expiring(broker, job, own.expires)
            asked_for.append(order_of(job, due, own))
        placed, refused = await broker.unique.submit_each(asked_for)
        if refused and (not placed or len(packed) == 1):
            raise refused[min(refused)]
        stored = [placed[place] for place in sorted(placed)]
        if refused:
            raise PartlySubmitted([one.id for one in stored], refused)
        return [receipt(broker, one, signature) for one in stored]

    # -- jobs --------------------------------------------------------------------------------------------

    async def job(self, id: str, queue: str = "*") -> JobHandle[Any]:
        """The handle of a job, by its id: on one queue, or `*` for any. Whether there is one, its methods
        tell. Raises `BadName`.
        """
        check_id(id)
        return JobHandle(await self.broker(), id, queue if queue == "*" else check_queue(queue))

    async def jobs(self, *, limit: int | None = 100, **which: Unpack[JobFilter]) -> list[JobRecord]:
        """The newest jobs that fit, newest last; without a `limit` all of them.

        `jobs(task="emails.send", state=["failed", "expired"], arg={"to": "a@b.c"})`: what may be said,
        `JobFilter` tells. Raises `BadOption`, `BadName`.
        """
        choice = read_criteria(**which)
        if limit is not None and limit < 1:
            raise BadOption("limit", limit, "it takes 1 or more, or None for all")
        return [record(event) for event in await (await self.broker()).query.newest(choice, limit)]

    async def open_jobs(self, **which: Unpack[JobFilter]) -> list[JobRecord]:
        """The jobs that fit and have not ended, oldest first: those that `cancel_many` would cancel.

        Raises `BadOption` where nothing is said of which, and for a state that is no open one.
        """
        choice = read_criteria(UNFINISHED_STATES, named=True, **which)
        return [record(event) for event in await (await self.broker()).query.open_jobs(choice)]

    async def cancel_many(self, **which: Unpack[JobFilter]) -> CancelCount:
        """Cancel every job that fits and has not ended, running ones too; returns how many, once certain.

        What is said of them goes together: `queue="mail", tag="x"` cancels those of queue mail with tag x.
        With a state, a job that has left it meanwhile is let be. Done again, it goes on where it broke off.
        Raises `BadOption` where nothing is said of which, and for a state that is no open one.
        """
        choice = read_criteria(UNFINISHED_STATES, named=True, **which)
        broker = await self.broker()
        return await broker.cancel.many(await broker.query.open_jobs(choice), choice.fits)

    async def retry_many(self, **which: Unpack[JobFilter]) -> int:
        """Run every failed job that fits again, with all its retries; returns how many.

        What has a new life already, or whose dead letter is gone, is left as it is. Raises `BadOption` where
        nothing is said of which, and for a state other than failed.
        """
        choice = read_criteria(("failed",), named=True, why=": only failed jobs can be tried again", **which)
        broker = await self.broker()

        return await total(
            lambda found: if_so(broker.dead_letters.replay(found.job, found.queue)),
            await broker.query.newest(choice),
        )

    async def promote_many(self, **which: Unpack[JobFilter]) -> int:
        """Have every job that fits and is due later run now; returns how many. See `JobHandle.promote`.

        Raises `BadOption` where nothing is said of which, and for a state in which none is due later.
        """
        choice = read_criteria(DELAYED_STATES, named=True, why=": only those are due later", **which)
        broker = await self.broker()

        return await total(
            lambda found: if_so(broker.reschedule.move(found.job, found.queue, asked="promoted")),
            await broker.query.open_jobs(choice),
        )

    async def remove_many(self, **which: Unpack[JobFilter]) -> int:
        """Remove every job that fits and has ended, as `JobHandle.remove` does; returns how many.

        Raises `BadOption` where nothing is said of which, and for a state in which a job has not ended.
        """
        choice = read_criteria(
            FINAL_STATES, named=True, why=": only a job that has ended is removed", **which
        )
        broker = await self.broker()

        return await total(
            lambda found: if_so(broker.remove.remove(found.job, found.queue)),
            await broker.query.newest(choice),
        )

    async def events(
        self,
        *,
        job: str | None = None,
        queue: str | None = None,
        state: str | None = None,
        since: datetime | None = None,
        follow: bool = True,
    ) -> AsyncIterator[JobRecord]:
        """What happens to jobs, as the server stores it; with `since`, what happened first. Ends never, or
        with
        `follow=False` when all that happened is told.
        """
        broker = await self.broker()
        id, lane = "*" if job is None else check_id(job), lane_of(queue)
        arrived: asyncio.Queue[Any] = asyncio.Queue()
        with contextlib.suppress(NotAllowed):
            await broker.streams.ensure_shared()
        async with broker.event_log.hearing(id, lane, arrived):
            await broker.event_log.check_hearing(id, lane)
            seen = 0
            if since is not None or not follow:
                for event in await broker.event_log.history(id, lane, since=since):
                    seen = event.sequence
                    if state is None or event.state == state:
                        yield record(event)
            while follow:
                event = await arrived.get()
                if event.sequence > seen and (state is None or event.state == state):
                    yield record(event)

    # -- queues ------------------------------------------------------------------------------------------

    async def queues(self) -> list[str]:
        """The names of the queues there are."""
        return await (await self.broker()).queues.known()

    async def queue_stats(self, queue: str | None = None) -> list[QueueStats]:
        """How many jobs wait, run, are due later and have died, for one queue or all."""
        return await (await self.broker()).queues.stats(None if queue is None else check_queue(queue))

    async def count_waiting(self, queue: str) -> int:
        """How many jobs `purge` would look at."""
        found = await self.queue_stats(queue)
        return sum(sum(one.waiting.values()) + one.lined + one.later for one in found)

    async def purge(self, queue: str) -> int:
        """Cancel every job of a queue that has not started; returns how many. Running ones go on."""
        cancels, lane = (await self.broker()).cancel, check_queue(queue)
        return (await cancels.many(await cancels.open_jobs(lane, not_running), not_running)).cancelled

    async def pause(
        self,
        queue: str,
        *,
        task: str | None = None,
        key: str | None = None,
        until: float | timedelta | datetime | None = None,
    ) -> Pause:
        """Have no job of a queue begin, or none of a `task` or with a `key` there; what runs goes on.

        It ends by `resume`, or by itself at `until`: a moment, or so many seconds from now. Done again, it
        lasts as it was said last. Raises `QueueNotFound`, `BadName`, `BadOption`.
        """
        broker = await self.broker()
        hold = held_place(task, key, read_pause_end(until, broker.wire.clock.moment()))
        await broker.queues.check(check_queue(queue))
        return (await broker.pauses.hold(queue, hold)).held[hold.place]

    async def resume(self, queue: str, *, task: str | None = None, key: str | None = None) -> None:
        """End a pause, or what `RateLimited` holds; one that there is not is no error. See `pause`."""
        broker = await self.broker()
        place = held_place(task, key, None).place
        await broker.queues.check(check_queue(queue))
        await broker.pauses.lift(queue, place)

    async def holds(self) -> dict[str, tuple[Pause, ...]]:
        """What is paused, or held after `RateLimited`, by queue."""
        found = await (await self.broker()).pauses.all_holds()
        return {queue: tuple(holds.held.values()) for queue, holds in found.items()}

    async def set_queue(self, queue: str, **changes: Unpack[QueueChanges]) -> QueueSettings:
        """Change settings of a queue while it lives; returns all that it is set to. Workers follow at once.

        None takes a limit away. What an App declares is put back by the next start of a worker of that App,
        or its `provision`. Raises `QueueNotFound`, `BadName`, `BadOption`, `CannotChange`.
        """
        return await (await self.broker()).queues.set(check_queue(queue), changes)

    # -- dead letters ------------------------------------------------------------------------------------

    async def dead_letters(
        self,
        *,
        queue: str | None = None,
        task: str | None = None,
        reason: str | None = None,
        error: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = None,
    ) -> list[DeadLetter]:
        """The dead letters that fit, oldest first.

        `reason` is one of `jsq.model.event.REASONS`, `error` an exception's type by name; `since` and `until`
        are aware moments of the death, the second not included. Raises `BadOption`, `BadName`.
        """
        which = DeadLetterCriteria(queue, task, reason, error, since, until)
        return await (await self.broker()).dead_letters.letters(which, limit)

    async def dead_letter(self, id: str) -> DeadLetter:
        """One dead letter. Raises `JobNotFound`."""
        found = await (await self.broker()).dead_letters.find(check_id(id))
        if found is None:
            raise JobNotFound(id)
        return found

    async def replay(self, id: str, arguments: Sequence[object] | Mapping[str, object] | None = None) -> None:
        """Run a dead job again under its id, with all its retries; what happened to it stays in its log.

        A deadline that it had is taken from it.

        `arguments` take the place of its own: a list of positional ones, or a dictionary of named ones. They
        are checked as far as they can be sent; whether they fit the task, its worker tells. Raises
        `JobNotFound`, `WrongState`, `BadArguments`.
        """
        packed = None if arguments is None else pack_each(id, [arguments], pack_call)[0]
        await (await self.broker()).dead_letters.replay(check_id(id), arguments=packed)

    async def replay_dead(
        self,
        *,
        queue: str | None = None,
        task: str | None = None,
        reason: str | None = None,
        error: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> int:
        """Run every dead job that fits again; returns how many. See `dead_letters`.

        What was no job, or has a new life already, is left as it is.
        """
        which = DeadLetterCriteria(queue, task, reason, error, since, until)
        dead = (await self.broker()).dead_letters

        return await total(
            lambda letter: if_so(dead.replay(letter.id, letter.queue)), await dead.letters(which)
        )

    async def purge_dead(
        self,
        *,
        id: str | None = None,
        queue: str | None = None,
        task: str | None = None,
        reason: str | None = None,
        error: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        free_ids: bool = False,
    ) -> int:
        """Remove the dead letters that fit; returns how many. See `dead_letters`.

        The records of their jobs stay `failed`, and a caller's own id stays taken. With `free_ids` all that
        is known of the jobs goes too, and their ids may be submitted anew.
        Raises `WrongState` for one named by its `id` that has a new life already.
        """
        which = DeadLetterCriteria(queue, task, reason, error, since, until)
        dead = (await self.broker()).dead_letters
        if id is None:
            letters = await dead.letters(which)
        else:
            one = await dead.find(check_id(id), lane_of(queue))
            letters = [one] if one is not None and which.fits(one) else []

        async def purge(letter: DeadLetter) -> int:
            if not free_ids:
                return await dead.purge_letter(letter)
            try:
                return await dead.forget(letter)
            except WrongState:
                if id is not None:
                    raise
                return 0

        return await total(purge, letters)

    # -- the whole ---------------------------------------------------------------------------------------

    async def provision(
        self,
        queues: Mapping[str, QueueSettings] | None = None,
        *,
        replicas: Replicas | None = None,
        schedules: Iterable[Schedule] = (),
        app: str | None = None,
        check: bool = False,
    ) -> list[Change]:
        """Bring the server to what the queues declare; returns what differed. With `check`, change nothing.

        With the name of an `app`, `schedules` are all that it declares: what it once declared and does no
        more is removed, unless a worker that is alive still declares it.

        Without queues, the default one is made where it is missing, and those that are there are brought back
        to what they were declared with. With `replicas`, so many servers of a cluster hold each queue that is
        there or declared, and all that is shared; they are waited for, a minute at most. Raises `BadName`,
        `CannotChange`, `ForeignStream`, `JetStreamOff`, and `BrokerUnavailable` where a queue has no leader.
        """
        broker = await self.broker()
        wanted = {check_queue(queue): settings for queue, settings in (queues or {}).items()}
        known = {} if wanted or replicas else await broker.streams.queues(wait=True)
        if replicas is not None:
            wanted = await broker.queues.settings() | wanted
        if not wanted and DEFAULT_QUEUE not in known:
            wanted = {DEFAULT_QUEUE: QueueSettings()}
        if replicas is not None:
            wanted = {queue: one.model_copy(update={"replicas": replicas}) for queue, one in wanted.items()}
        most = max((settings.replicas for settings in wanted.values()), default=1)
        changes = await broker.streams.reconcile_shared(most, write=not check)
        for queue, settings in wanted.items():
            changes += await broker.queues.declare(queue, settings, write=not check)
        for queue, stream in known.items():
            changes += await broker.streams.restore(queue, stream["config"], write=not check)
        if app is not None:
            changes += await broker.schedules.reconcile(schedules, app, write=not check, prune=True)
        if not check:
            changes += await broker.streams.keep_advisories()
            await broker.streams.await_copies()
        else:
            with contextlib.suppress(ForeignStream):
                every = {*wanted, *await broker.queues.known()}
                changes += await broker.streams.reconcile_advisories(every, write=False)
        return list(dict.fromkeys(changes))

    def roles(
        self,
        *users: str,
        queues: Sequence[str] = (DEFAULT_QUEUE,),
        nkeys: Mapping[str, str] | None = None,
    ) -> Roles:
        """Who may do what in this namespace, to be written down for the server, which is not asked.

        A user is `NAME=ROLE[:QUEUE,...][+ROLE...]`, a role `submitter`, `worker`, `observer` or `admin`; `*`
        stands for all queues, and `queues` are those of a role that names none. Without users there is one of
        each role. `nkeys` has the public keys of those that log in by one; the others have passwords.
        `roles().conf()` is the block `accounts` of nats-server.conf, `claims()` the same for JWTs.
        Raises `BadOption`, `BadName`.
        """
        return Roles.read(Subjects(self.namespace), users, queues, nkeys or {})

    async def workers(self) -> list[dict[str, Any]]:
        """The workers that are alive, as they describe themselves."""
        return await (await self.broker()).presence.alive()

    async def sweep(self, *, age: float | timedelta = MIN_AGE, mend: bool = True) -> list[RepairResult]:
        """Look for what was left behind on the server, and mend what can be mended.

        What `age` seconds ago was not there, or was about to change, is let be. With `mend=False` it is only
        told. One sweep goes on at a time: raises `BrokerUnavailable` where another takes more than 30 s, and
        `BadOption`. Workers sweep by themselves; see `WorkerSettings.sweep`.
        """
        broker = await self.broker()
        old = seconds("age", age) or 0.0
        if mend:
            return await broker.sweeper.sweep(f"client-{new_id()}", age=old)
        found = await broker.sweeper.look(age=old)
        return [RepairResult(one.flaw, one.queue, one.job, mended=False) for one in found]

    async def doctor(self, *, monitors: Sequence[str] = ()) -> list[Finding]:
        """What is well and what is not, with a cure each. Nothing is changed.

        `monitors` are the addresses of servers' monitoring, such as `http://127.0.0.1:8222`: each is looked
        at by itself, and their copies of the streams are compared. Raises `BadOption` for what is none.
        """
        return await examine(await self.broker(), monitors)


class Submission:
    """Options bound to a client: call `submit` or `delay` with a task's name and its arguments."""

    def __init__(self, client: Client, options: Options) -> None:
        self._client = client
        self._options = options

    async def submit(self, task: str, /, *args: object, **arguments: object) -> JobHandle[Any]:
        """Submit a job with these options."""
        return await self._client.send(check_task(task), pack_call(args, arguments), self._options)

    async def submit_many(
        self,
        task: str,
        calls: Iterable[Call],
        *,
        ids: Sequence[str] | None = None,
        all_or_nothing: bool = False,
    ) -> list[JobHandle[Any]]:
        """Submit many jobs with these options; see `Client.submit_many`."""
        packed = pack_each(task, calls, pack_call)
        return await self._client.send_many(
            check_task(task), packed, self._options, ids=ids, all_or_nothing=all_or_nothing
        )

    def map(
        self,
        task: str,
        calls: Iterable[object] | AsyncIterable[object],
        *,
        return_exceptions: bool = False,
        **how: Unpack[MapOptions],
    ) -> Results[Any]:
        """The results of many calls with these options; see `Client.map`."""
        check_task(task)

        async def submit(some: Sequence[Call], ids: Sequence[str], before: int) -> list[JobHandle[Any]]:
            packed = pack_each(task, some, pack_call, before)
            return await self._client.send_many(task, packed, self._options, ids=ids, anew=True)

        return Results(self._client.mapped(self._options, submit, calls, return_exceptions, how))

    def delay(self, task: str, /, *args: object, **arguments: object) -> SyncJobHandle[Any]:
        """The blocking twin of `submit`."""
        portal = self._client.portal
        return SyncJobHandle(portal.call(self.submit(task, *args, **arguments)), portal)

    def delay_many(
        self,
        task: str,
        calls: Iterable[Call],
        *,
        ids: Sequence[str] | None = None,
        all_or_nothing: bool = False,
    ) -> list[SyncJobHandle[Any]]:
        """The blocking twin of `submit_many`."""
        portal = self._client.portal
        asked = self.submit_many(task, calls, ids=ids, all_or_nothing=all_or_nothing)
        return [SyncJobHandle(handle, portal) for handle in portal.call(asked)]

    def delay_map(
        self,
        task: str,
        calls: Iterable[object] | AsyncIterable[object],
        *,
        return_exceptions: bool = False,
        **how: Unpack[MapOptions],
    ) -> Iterator[Any]:
        """The blocking twin of `map`: an iterator."""
        found = self.map(task, calls, return_exceptions=return_exceptions, **how)
        return each(found, self._client.portal)


class BlockingSchedules(BlockingWrapper[Schedules]):
    """The blocking twin of `client.schedules`."""

    add = twin(Schedules.add)
    ls = twin(Schedules.ls)
    rm = twin(Schedules.rm)
    pause = twin(Schedules.pause)
    resume = twin(Schedules.resume)
    next = twin(Schedules.next)

    def run(self, name: str) -> SyncJobHandle[Any]:
        """As `Schedules.run`."""
        return SyncJobHandle(self._portal.call(self._of.run(name)), self._portal)


class Blocking(BlockingWrapper[Client]):
    """What a client does beside submitting, for callers without an event loop: `blocking.pause("mail")`.

    `delay`, `delay_many` and `delay_map` of the client itself submit.
    """

    def __init__(self, client: Client, portal: Portal) -> None:
        super().__init__(client, portal)
        self.schedules = BlockingSchedules(client.schedules, portal)

    jobs = twin(Client.jobs)
    open_jobs = twin(Client.open_jobs)
    cancel_many = twin(Client.cancel_many)
    retry_many = twin(Client.retry_many)
    promote_many = twin(Client.promote_many)
    remove_many = twin(Client.remove_many)
    queues = twin(Client.queues)
    queue_stats = twin(Client.queue_stats)
    count_waiting = twin(Client.count_waiting)
    purge = twin(Client.purge)
    pause = twin(Client.pause)
    resume = twin(Client.resume)
    holds = twin(Client.holds)
    set_queue = twin(Client.set_queue)
    dead_letters = twin(Client.dead_letters)
    dead_letter = twin(Client.dead_letter)
    replay = twin(Client.replay)
    replay_dead = twin(Client.replay_dead)
    purge_dead = twin(Client.purge_dead)
    provision = twin(Client.provision)
    workers = twin(Client.workers)
    sweep = twin(Client.sweep)
    doctor = twin(Client.doctor)

    def job(self, id: str, queue: str = "*") -> SyncJobHandle[Any]:
        """As `Client.job`."""
        return SyncJobHandle(self._portal.call(self._of.job(id, queue)), self._portal)

    def events(
        self,
        *,
        job: str | None = None,
        queue: str | None = None,
        state: str | None = None,
        since: datetime | None = None,
        follow: bool = True,
    ) -> Iterator[JobRecord]:
        """As `Client.events`."""
        found = self._of.events(job=job, queue=queue, state=state, since=since, follow=follow)
        return each(found, self._portal)


async def total(act: Callable[[T], Awaitable[int]], things: Iterable[T], at_once: int = 100) -> int:
    """Act on each thing, some at once; returns the sum of what that gives."""
    left = iter(things)

    async def act_on_next() -> int:
        return sum([await act(thing) for thing in left])

    return sum(await asyncio.gather(*(act_on_next() for _ in range(at_once))))


def check_many(options: Options) -> None:
    """Raises `BadOption` for options that many jobs cannot have together."""
    if options.id is not None:
        raise BadOption("id", options.id, "an id is one job's: submit that by itself")


def check_each(options: Options, ids: Sequence[str] | None, all_or_nothing: bool) -> None:
    """Raises `BadOption` for unique jobs that are to be stored otherwise than each by itself."""
    if all_or_nothing:
        raise BadOption("all_or_nothing", all_or_nothing, "unique jobs are stored each by itself")
    if ids is not None:
        raise BadOption("unique", options.unique, "what has ids of its own, or is mapped, has no keys")


def order_of(job: Job, due: datetime | None, options: Options) -> UniqueSubmit:
    """What the submit of a unique job asks for."""
    key = options.unique or True
    hashed = unique_hash(job.task, arguments_key(job.arguments) if isinstance(key, bool) else key)
    unique = unique_request(
        hashed,
        options.unique_until,
        options.unique_for,
        options.on_duplicate,
        options.debounce,
        options.throttle,
    )
    job = replace(job, unique=hashed if unique.way == "keep_last" else "")
    return UniqueSubmit(job, due, unique, patience_of(options), once=options.id is not None)


def receipt(broker: Broker, placed: Placed, signature: Signature | None) -> JobHandle[Any]:
    """The handle of the job that a unique submit came to."""
    return JobHandle(broker, placed.id, placed.queue, signature=signature, duplicate=placed.duplicate)


def held_place(task: str | None, key: str | None, until: datetime | None) -> Pause:
    """A hold on a task, a key, or a whole queue. Raises `BadName`, `BadOption`."""
    if task is not None and key is not None:
        raise BadOption("key", key, "give task or key, not both")
    check_key(key)
    return Pause("" if task is None else check_task(task), key or "", until)


async def if_so(act: Awaitable[object]) -> int:
    """Do something to a job, and count it; one that is in another state by then, or gone, is let be."""
    with contextlib.suppress(WrongState, JobNotFound):
        await act
        return 1
    return 0


def lane_of(queue: str | None) -> str:
    """A queue's name, or `*` for all of them. An empty name is no queue's, and never means all."""
    return "*" if queue is None else check_queue(queue)


def not_running(found: LoggedEvent) -> bool:
    """Whether a job has yet to begin (again)."""
    return found.state != "running"


_NOTHING: Mapping[str, object] = {}


def each_call(task: str, calls: Iterable[Call]) -> Iterator[tuple[Sequence[object], Mapping[str, object]]]:
    """Calls as positional and named arguments. Raises `BadArguments`."""
    for call in calls:
        if isinstance(call, (list, tuple)):
            yield call, _NOTHING
        elif isinstance(call, Mapping):
            yield (), call
        else:
            kind = type(call).__name__
            raise BadArguments(
                f"{task}: it takes a list of arguments, or a dictionary of named ones: no {kind}"
            )


def pack_each(
    task: str,
    calls: Iterable[Call],
    pack: Callable[[Sequence[object], Mapping[str, object]], bytes],
    before: int = 0,
) -> list[bytes]:
    """The arguments of many calls, packed. Raises `BadArguments`, which names the place of the wrong one:
    so many calls went `before`.
    """
    packed: list[bytes] = []
    try:
        for args, named in each_call(task, calls):
            packed.append(pack(args, named))
    except BadArguments as error:
        place = before + len(packed)
        raise BadArguments(f"call {place:,} of many: {error}", place) from error
    return packed


def ordered(id: str, task: str, arguments: bytes, options: Options) -> tuple[Job, datetime | None]:
    """The job that a submit asks for, and when it may start, None for at once. Raises `BadOption`."""
    queue, priority = options.queue or DEFAULT_QUEUE, options.priority or "normal"
    job = Job(id, task, queue, priority, arguments, retry_until=options.retry_until, **options.job_fields)
    if not (options.delay or options.at or options.deadline or options.expires or options.debounce):
        return job, None
    now = datetime.now(UTC)
    due = options.due(now)
    if options.expires is not None:
        expiry_time(options.expires, due, now)
    return replace(job, deadline=options.ends(due, now)), due


async def expiring(broker: Broker, job: Job, expires: float | datetime) -> Job:
    """A job that expires, with the moment by the server's clock. Raises `BadOption`."""
    return replace(job, expires=await broker.expiry.moment(expires, job.queue))


def patience_of(options: Options) -> WaitForRoom | None:
    """How long a submit waits for room, counted from now."""
    return WaitForRoom(options.wait_for_room) if options.wait_for_room else None
