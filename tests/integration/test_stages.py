"""The stages of a job: a plain job has none, any other job has only those of the features that it uses."""

import ast
from pathlib import Path
from typing import Any

import pytest

import jsq.worker.attempt
import jsq.worker.stages
from jsq import App, Context
from jsq.declaration import Declaration
from jsq.model.job import Job
from jsq.task import AnyTask
from jsq.worker.attempt import option_shape
from jsq.worker.stages.base import Stage
from jsq.worker.stages.callbacks import CallbackStage
from jsq.worker.stages.checkpoints import CheckpointStage
from jsq.worker.stages.expiry import ExpiryStage
from jsq.worker.stages.key_groups import KeyGroupStage
from jsq.worker.stages.next_attempt import NextAttemptStage
from jsq.worker.stages.order import build_stages
from jsq.worker.stages.plans import StagePlan, StagePlans
from jsq.worker.stages.progress import ProgressStage
from jsq.worker.stages.retry_window import RetryWindowStage
from jsq.worker.stages.unique import UniqueStage
from jsq.worker.stages.unknown_task import UnknownTaskStage
from jsq.worker.state import AttemptState
from tests.helpers.conditions import Until
from tests.helpers.workers import Working

FEATURES = {path.stem for path in Path(next(iter(jsq.worker.stages.__path__))).glob("*.py")}
INTERFACE = {"__init__", "base", "plans", "order"}


@pytest.fixture
async def plans(app: App, working: Working) -> StagePlans:
    @app.task
    async def plain() -> None:
        """Do nothing."""

    @app.task(deadline=60, retries=2)
    async def dated() -> None:
        """Do nothing."""

    @app.task
    async def curious(ctx: Context) -> None:
        """Do nothing."""

    async with working() as worker:
        return worker.dispatcher.plans


def plan_of(plans: StagePlans, job: Job) -> StagePlan:
    shape = option_shape(job)
    return plans.get(("default", job.task, shape)) or plans.plan(job, "default", shape)


def stages_of(plans: StagePlans, task: str, **options: Any) -> list[type[Stage]]:
    plan = plan_of(plans, Job("j1", task, **options))
    return [type(stage) for stage in plan.stages]


async def test_a_plain_job_has_no_stages_and_shares_one_plan(plans: StagePlans) -> None:
    assert stages_of(plans, "plain") == []
    assert stages_of(plans, "plain", retries=3, timeout=5.0) == []
    assert plan_of(plans, Job("j1", "plain")) is plan_of(plans, Job("j2", "plain"))
    assert plan_of(plans, Job("j1", "plain", key="a")) is plan_of(plans, Job("j2", "plain", key="b"))
    assert plan_of(plans, Job("j1", "plain", retries=1)) is not plan_of(plans, Job("j2", "plain", retries=2))


@pytest.mark.parametrize(
    ("task", "options", "stages"),
    [
        ("dated", {}, [ExpiryStage]),
        ("plain", {"deadline": 5.0}, [ExpiryStage]),
        ("plain", {"retry_for": 5.0}, [RetryWindowStage]),
        ("plain", {"unique": "5f0c"}, [UniqueStage]),
        ("plain", {"key": "a"}, [KeyGroupStage]),
        ("curious", {}, [CheckpointStage, ProgressStage]),
        ("nowhere", {}, [UnknownTaskStage]),
    ],
)
async def test_a_job_has_the_stages_of_the_features_that_it_uses(
    plans: StagePlans, task: str, options: dict[str, Any], stages: list[type[Stage]]
) -> None:
    assert stages_of(plans, task, **options) == stages


async def test_a_job_that_does_not_succeed_gets_the_exceptional_stages_in_their_order(
    plans: StagePlans,
) -> None:
    job = Job("j1", "plain", key="a")

    completed = [type(stage) for stage in plans.completed(plan_of(plans, job).stages)]

    for earlier, later in [(CallbackStage, NextAttemptStage), (NextAttemptStage, KeyGroupStage)]:
        assert completed.index(earlier) < completed.index(later)


def test_the_attempt_names_no_feature() -> None:
    path = Path(jsq.worker.attempt.__file__)
    source = path.read_text()

    imported = [
        node.module
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module
    ]

    assert {"base", "plans"} >= {name.rpartition(".")[2] for name in imported if ".stages" in name}
    assert [feature for feature in FEATURES - INTERFACE if feature in source] == []
    assert len(source.splitlines()) <= 200


class Faulty(Stage):
    """A stage of the task that is named after a hook: this hook raises once."""

    def __init__(self, hook: str) -> None:
        self.hook = hook
        self.raised = 0
        setattr(self, hook, self.fail)
        self.wraps_run = self.replaces_start = True

    def applies(self, job: Job, task: AnyTask | None, options: Declaration) -> bool:
        return job.task == self.hook

    async def fail(self, attempt: AttemptState, *args: Any) -> Any:
        if not self.raised:
            self.raised += 1
            raise ValueError("a fault of this stage")
        return await getattr(Stage, self.hook)(self, attempt, *args)


async def test_an_error_in_a_stage_loses_no_job_and_releases_slots_and_stages(
    app: App, working: Working, until: Until
) -> None:
    hooks = ["admit", "instead", "started", "perform", "finish", "close", "close"]

    async def double(number: int) -> int:
        return 2 * number

    app.queue("default", lease=1)
    tasks = [app.task(name=hook)(double) for hook in sorted({*hooks})]
    async with working(concurrency=2) as worker:
        faulty = [Faulty(hook) for hook in hooks]
        resources, dispatcher = worker.resources, worker.dispatcher
        stages, _ = build_stages(resources, dispatcher.limits, dispatcher.abandoned, dispatcher, {})
        dispatcher.plans = StagePlans(resources, (*faulty, *stages))
        jobs = [await task.submit(7) for task in tasks]
        assert [await job.result(20) for job in jobs] == [14] * len(tasks)
        await until(lambda: all(one.raised for one in faulty) and not dispatcher.occupied)
        assert not dispatcher.attempts
