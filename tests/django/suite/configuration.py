"""The App and the settings."""

import django
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.test import SimpleTestCase, override_settings

import jsq.contrib.django
from jsq import Login
from jsq.contrib.django.project import project_app
from tests.django.shop import tasks
from tests.django.shop.hooks import Notes


class ConfigurationTests(SimpleTestCase):
    """The settings `JSQ` and `TASKS`."""

    def test_the_app_of_the_project_is_one_object(self) -> None:
        app = project_app()
        self.assertIs(jsq.contrib.django.app, app)
        self.assertIs(vars(tasks)["app"], app)
        self.assertIsInstance(app.middleware.of_app[-1], Notes)

    def test_other_settings_make_another_app(self) -> None:
        app = jsq.contrib.django.app
        with override_settings(JSQ={"namespace": "other", "url": Login(url="nats://other:4222")}):
            self.assertEqual(jsq.contrib.django.app.namespace, "other")
            self.assertEqual(jsq.contrib.django.app.client.login.url, "nats://other:4222")
        self.assertEqual(jsq.contrib.django.app.namespace, app.namespace)

    def test_wrong_settings_are_refused_by_name(self) -> None:
        for wrong, text in (
            ({"URL": "nats://localhost"}, "URL"),
            ({"middleware": ["no.such.Middleware"]}, "no"),
            ({"middleware": "tests.django.shop.hooks.Notes"}, "middleware"),
            ("nats://localhost", "dictionary"),
        ):
            with self.subTest(wrong), override_settings(JSQ=wrong):
                with self.assertRaisesMessage(ImproperlyConfigured, text):
                    project_app()
                with self.assertRaisesMessage(SystemCheckError, "jsq.E001"):
                    call_command("check")

    def test_the_check_of_right_settings_is_silent(self) -> None:
        call_command("check")

    def test_before_django_6_the_backend_names_what_it_needs(self) -> None:
        if django.VERSION < (6,):
            with self.assertRaisesMessage(ImportError, "JsqBackend needs Django 6.0 or later"):
                jsq.contrib.django.JsqBackend  # noqa: B018 -- that is what is tested

    def test_an_unknown_name_is_an_attribute_error(self) -> None:
        with self.assertRaisesMessage(AttributeError, "nonsense"):
            jsq.contrib.django.nonsense  # type: ignore[attr-defined]  # noqa: B018 -- that is what is tested
