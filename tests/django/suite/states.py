"""The addresses for the state and the progress of a job."""

import json
from typing import Any

from asgiref.sync import sync_to_async
from django.test import AsyncClient, Client, TransactionTestCase

from jsq.contrib.django import app
from tests.django.shop.models import Order
from tests.django.shop.tasks import pack
from tests.django.suite import working


def knowing(client: Any, *jobs: str) -> Any:
    """The client, with a session that knows some jobs."""
    session = client.session
    session["jobs"] = list(jobs)
    session.save()
    return client


def state_in(event: bytes) -> Any:
    """The state in an event; empty in a comment."""
    data = event.decode().partition("data: ")[2]
    return json.loads(data) if data else {}


class StateTests(TransactionTestCase):
    """The view of a state, and the events."""

    def test_a_state_is_shown_to_a_request_that_may_see_the_job(self) -> None:
        job = pack.delay(1)
        answer = knowing(Client(), job.id).get(f"/jobs/{job.id}/")
        self.assertEqual((answer.status_code, answer.json()["state"]), (200, "queued"))
        self.assertEqual(answer.headers["Cache-Control"], "no-store")
        self.assertEqual(Client().get(f"/jobs/{job.id}/").status_code, 404)
        self.assertEqual(knowing(Client(), "other").get("/jobs/other/").status_code, 404)
        self.assertEqual(Client().get(f"/all/{job.id}/").json()["id"], job.id)

    def test_a_job_is_cancelled_only_by_a_request_that_may_see_it(self) -> None:
        job = pack.delay(1)
        self.assertEqual(Client().delete(f"/jobs/{job.id}/").status_code, 404)
        self.assertEqual(Client().delete(f"/all/{job.id}/").status_code, 405)
        self.assertEqual(job.status().state, "queued")
        answer = knowing(Client(), job.id).delete(f"/jobs/{job.id}/")
        self.assertEqual((answer.status_code, answer.json()["state"]), (200, "cancelled"))

    def test_a_delete_needs_the_token(self) -> None:
        job = pack.delay(1)
        strict = knowing(Client(enforce_csrf_checks=True), job.id)
        self.assertEqual(strict.delete(f"/jobs/{job.id}/").status_code, 403)

    async def test_the_events_end_with_the_job(self) -> None:
        order = await Order.objects.acreate(name="book")
        job = await pack.submit(order.pk)
        client = await sync_to_async(knowing)(AsyncClient(), job.id)
        self.assertEqual((await AsyncClient().get(f"/jobs/{job.id}/events/")).status_code, 404)
        answer = await client.get(f"/jobs/{job.id}/events/")
        self.assertEqual(answer.headers["Content-Type"], "text/event-stream")
        parts = aiter(answer.streaming_content)
        states = [state_in(await anext(parts))]
        async with working():
            states += [state_in(part) async for part in parts]
        self.assertEqual((states[0]["state"], states[-1]["state"]), ("queued", "succeeded"))
        self.assertEqual(states[-1]["result"], "book")
        await app.close()
