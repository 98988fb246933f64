"""The page of the admin."""

from asgiref.sync import sync_to_async
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import Client, TransactionTestCase, override_settings

from jsq.contrib.django import app
from tests.django.shop.tasks import fail, pack
from tests.django.suite import working

OVERVIEW = "/admin/jsq/jobs/"


def client_of(*permissions: str, **options: bool) -> Client:
    """A client that is logged in as a member of the staff."""
    user = User.objects.create_user("-".join(("ann", *permissions)), password="secret", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client(**options)
    client.force_login(user)
    return client


class AdminTests(TransactionTestCase):
    """The pages, and the permissions to see and to change jobs."""

    def test_the_index_links_to_the_jobs_of_a_user_who_may_see_them(self) -> None:
        self.assertContains(client_of("view_jobs").get("/admin/"), f'href="{OVERVIEW}"')
        self.assertNotContains(client_of().get("/admin/"), OVERVIEW)

    def test_nobody_sees_jobs_without_the_permission(self) -> None:
        job = pack.delay(1)
        for page in (OVERVIEW, f"{OVERVIEW}{job.id}/change/"):
            self.assertEqual(Client().get(page).status_code, 302)
            self.assertEqual(client_of(page.replace("/", "x")).get(page).status_code, 403)

    def test_the_overview_shows_queues_and_jobs(self) -> None:
        job = pack.options(queue="shelf").blocking.submit(1)
        other = pack.options(queue="desk").blocking.submit(1)
        client = client_of("view_jobs")
        self.assertContains(client.get(OVERVIEW), "?queue=shelf")
        page = client.get(OVERVIEW, {"queue": "shelf", "state": "queued"})
        self.assertContains(page, job.id)
        self.assertNotContains(page, other.id)
        self.assertContains(client.get(OVERVIEW, {"state": "failed", "queue": "shelf"}), "No job matches.")
        self.assertContains(client.get(OVERVIEW, {"state": "nonsense"}), "state")

    def test_a_job_is_found_by_its_id(self) -> None:
        job = pack.options(id="order/7 ä?").blocking.submit(1)
        client = client_of("view_jobs")
        page = client.get(OVERVIEW, {"id": job.id}, follow=True)
        self.assertContains(page, "order/7 ä?")
        self.assertContains(page, "&quot;order&quot;: 1")
        self.assertNotContains(page, "Cancel the job")
        self.assertEqual(client.get(OVERVIEW, {"id": "nothing"}, follow=True).status_code, 404)
        self.assertEqual(client.get(OVERVIEW, {"id": "x" * 200}, follow=True).status_code, 404)

    def test_a_user_who_may_manage_jobs_cancels_one(self) -> None:
        job = pack.options(id="to cancel").blocking.submit(1)
        page = f"{OVERVIEW}to cancel/change/"
        client = client_of("view_jobs", "manage_jobs")
        self.assertContains(client.get(page), "Cancel the job")
        answer = client.post(f"{OVERVIEW}to cancel/cancel/", follow=True)
        self.assertContains(answer, "Cancelled job to cancel.")
        self.assertContains(answer, "Run again")
        self.assertEqual(job.status().state, "cancelled")
        self.assertEqual(LogEntry.objects.get().object_id, "to cancel")
        self.assertContains(client.post(f"{OVERVIEW}to cancel/retry/", follow=True), "Retried job to cancel.")
        self.assertNotEqual(job.status().state, "cancelled")

    def test_a_user_who_may_only_see_jobs_changes_none(self) -> None:
        job = pack.delay(1)
        client = client_of("view_jobs")
        for action in ("retry", "cancel"):
            self.assertEqual(client.post(f"{OVERVIEW}{job.id}/{action}/").status_code, 403)
        self.assertEqual(job.status().state, "queued")

    def test_an_action_needs_a_post_and_the_token(self) -> None:
        job = pack.delay(1)
        client = client_of("manage_jobs", enforce_csrf_checks=True)
        self.assertEqual(client.get(f"{OVERVIEW}{job.id}/cancel/").status_code, 405)
        self.assertEqual(client.post(f"{OVERVIEW}{job.id}/cancel/").status_code, 403)
        self.assertEqual(job.status().state, "queued")

    async def test_a_failed_job_shows_its_traceback_and_is_retried(self) -> None:
        async with working():
            job = await fail.submit("broken")
            await job.wait(20)
        client = await sync_to_async(client_of)("view_jobs", "manage_jobs")
        get, post = sync_to_async(client.get), sync_to_async(client.post)
        page = await get(f"{OVERVIEW}{job.id}/change/")
        self.assertContains(page, "ValueError: broken in attempt 1")
        self.assertContains(page, "tests/django/shop/tasks.py")
        await post(f"{OVERVIEW}{job.id}/retry/")
        self.assertEqual((await job.status()).state, "retrying")
        await app.close()

    def test_an_error_of_the_server_is_a_message(self) -> None:
        client = client_of("view_jobs")
        with override_settings(JSQ={"url": "nats://localhost:none"}):
            page = client.get(f"{OVERVIEW}any/change/")
            self.assertRedirects(page, OVERVIEW, fetch_redirect_response=False)
            self.assertContains(client.get(OVERVIEW), "is not the address of a server", count=2)
