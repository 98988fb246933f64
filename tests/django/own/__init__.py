"""Django's own tests of its task backends, run against `JsqBackend`.

`python -m tests.django.own FOLDER` runs them; FOLDER is `tests` of Django's source. The tests name the two
backends of Django: here these names lead to `JsqBackend`, without a worker for the dummy backend, and with
one for the immediate backend.
"""
