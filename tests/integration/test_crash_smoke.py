"""A worker is killed at a few of its points. The proof tier has every point: see `test_crash_points.py`."""

from tests.helpers.conditions import Until
from tests.helpers.crash_points import NewSite, at_each_point, kill_worker


async def test_a_worker_killed_at_some_points_loses_and_repeats_no_job(
    new_site: NewSite, until: Until
) -> None:
    await at_each_point(lambda point: kill_worker(new_site(), point, "succeed", until), first=3, every=8)
