"""The settings of the project. The server of jsq comes from JSQ_URL and JSQ_NAMESPACE."""

import os

import django

SECRET_KEY = "for tests"
ROOT_URLCONF = "tests.django.urls"
USE_TZ = True
STATIC_URL = "static/"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "jsq.contrib.django",
    "tests.django.shop",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
FILE = os.environ.get("DJANGO_DATABASE", "db.sqlite3")
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": FILE,
        "OPTIONS": {"timeout": 20},
        "TEST": {"NAME": FILE},  # worker processes use it too
    }
}
MIGRATION_MODULES = dict.fromkeys(
    ("admin", "auth", "contenttypes", "sessions")
)  # tables without their history
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

JSQ = {"middleware": ["tests.django.shop.hooks.Notes"]}

if django.VERSION >= (6,):
    TASKS = {
        "default": {"BACKEND": "jsq.contrib.django.JsqBackend", "QUEUES": ["default", "mail"]},
        "later": {
            "BACKEND": "jsq.contrib.django.JsqBackend",
            "QUEUES": ["default", "mail"],
            "OPTIONS": {"enqueue_on_commit": True},
        },
        "immediate": {"BACKEND": "django.tasks.backends.immediate.ImmediateBackend"},
    }
