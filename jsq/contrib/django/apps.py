"""The configuration of jsq as an app of a Django project."""

from django.apps import AppConfig
from django.core import checks

from jsq.contrib.django.project import check_settings


class JsqConfig(AppConfig):
    """Adds the command `manage.py jsq`, the page of the admin, and the check of the settings."""

    name = "jsq.contrib.django"
    label = "jsq"
    verbose_name = "jsq"

    def ready(self) -> None:
        """Register the check."""
        checks.register(check_settings)
