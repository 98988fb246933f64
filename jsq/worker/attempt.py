"""One delivery, from its message to its end: the core of a worker, as a list of steps.

An outcome is recorded before the delivery is settled. After a crash between the two, the delivery comes back,
finds the record, and is settled without a run. An attempt whose lease has lapsed starts nothing, and records
its outcome only if no other worker has taken over the job.
"""

import functools
import logging
import operator
import random
import time
from collections.abc import Awaitable, Callable

from jsq.errors import BadArguments, BadEnvelope, BadName, BrokerError, LeaseLost, NewerEnvelope
from jsq.model.job import Job
from jsq.model.outcome import Failed, Outcome, describe_error, judge_outcome
from jsq.worker.run import TooLate
from jsq.worker.settle import CUT_OFF, end_attempt, settle_unstarted
from jsq.worker.stages.base import Run, Stage
from jsq.worker.stages.plans import (
    NOTHING_ADDED,
    STAGE_FIELD_COUNT,
    OptionShape,
    StagedAttempt,
    StagePlan,
    added_options,
)
from jsq.worker.start import decode_delivery, reject, start_attempt

log = logging.getLogger("jsq.job")

STALLED = "the lease expired: this process stalled, or another worker has the job"


class Attempt(StagedAttempt):
    """A delivery that this worker holds."""

    async def run(self) -> None:
        """Take the delivery to its end. Raises no error that one job could cause."""
        await self.carry_out(self.steps)

    async def steps(self) -> None:
        """The steps of an attempt, from its message to its end."""
        if await self.admit() and await start_attempt(self):
            await self.perform_started()

    async def perform_started(self) -> None:
        """The steps of an attempt that has started."""
        began = time.monotonic()
        outcome = await self.perform()
        await end_attempt(self, outcome, time.monotonic() - began)

    def adopt(self, job: Job, plan: StagePlan) -> None:
        """Continue with a job that was decoded elsewhere, by its plan."""
        self.job = job
        self.task, self.options, self.stages, self.success_ttl, self.option_member = plan

    async def carry_out(self, steps: Callable[[], Awaitable[None]]) -> None:
        """Run some steps. Raises no error that one job could cause."""
        try:
            await steps()
        except LeaseLost:
            self.note_lease_lost()
        except BrokerError as error:
            self.resources.holders.note_unrecorded(self, crashed=self.has_lease())
            log.warning("delivery abandoned", extra=self.log_fields(why=str(error)))
        except Exception:
            self.resources.holders.note_unrecorded(self, crashed=True)
            log.exception("delivery abandoned", extra=self.log_fields(why="an error of jsq itself"))
        finally:
            for stage in reversed(self.stages):
                await self.close(stage)
            self.function.release()

    def note_lease_lost(self) -> None:
        """Note that the attempt has ended without an outcome, because its lease has lapsed."""
        cut_off = self.resources.holders.was_cut_off(self)
        self.resources.holders.note_unrecorded(self, crashed=not cut_off)
        self.resources.observer.lease_lost(self.job)
        log.warning("lease lost", extra=self.log_fields(why=CUT_OFF if cut_off else STALLED))

    async def admit(self) -> bool:
        """Decode the job, and ask its stages whether it may start now. If not, the delivery is settled."""
        try:
            self.job = job = decode_delivery(self.delivery)
        except (BadEnvelope, BadName, NewerEnvelope) as error:
            await reject(self, error)
            return False
        plans, queue, shape = self.plans, self.delivery.queue, option_shape(job)
        plan = plans.get((queue, job.task, shape)) or plans.plan(job, queue, shape)
        self.task, self.options, self.stages, self.success_ttl, self.option_member = plan
        for stage in self.stages:
            admission = await stage.admit(self)
            if not isinstance(admission, Run):
                await settle_unstarted(self, admission)
                return False
        return True

    async def close(self, stage: Stage) -> None:
        """Close one stage. Its error is logged, so that the other stages are closed too."""
        try:
            await stage.close(self)
        except Exception:
            log.exception("stage not closed", extra=self.log_fields(stage=type(stage).__name__))

    async def perform(self) -> Outcome:
        """Run the task, inside the `perform` methods of its stages."""
        proceed = self.call
        for stage in reversed(self.stages):
            if stage.wraps_run:
                proceed = functools.partial(stage.perform, self, proceed)
        return await proceed()

    async def call(self) -> Outcome:
        """Call the function of the task, and judge how it ended."""
        try:
            assert self.task is not None, "a stage ends the jobs of unknown tasks"
            return await self.function.perform(self.resources, self.task, self.job, self.options, self.token)
        except BadArguments as error:
            return Failed("bad_arguments", describe_error(error))
        except (LeaseLost, TooLate):
            raise
        except Exception as error:
            job = self.job
            return judge_outcome(
                error,
                failures=job.failures,
                policy=self.options.retry,
                pick=random.uniform,
                attempt=job.attempt,
            )


def option_shape(job: Job) -> OptionShape:
    """The options that the submit of a job added: with its task they decide its stages and options."""
    added = added_options(job)
    if added == NOTHING_ADDED:
        return ()
    last = STAGE_FIELD_COUNT
    return (*map(operator.ne, added[:last], NOTHING_ADDED), *added[last:])
