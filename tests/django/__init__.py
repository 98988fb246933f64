"""A Django project for the tests of `jsq.contrib.django`. Its own tests run with `manage.py test`."""
