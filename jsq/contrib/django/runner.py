"""The test runner for `manage.py test`: the tests need no server of their own."""

import contextlib
import os
from typing import Any

from django.test.runner import DiscoverRunner

from jsq.contrib.django.project import project_app
from jsq.testing.binding import Binding
from jsq.testing.servers import JsqServer


class JsqTestRunner(DiscoverRunner):  # type: ignore[misc]  # Django has no types
    """`TEST_RUNNER = "jsq.contrib.django.JsqTestRunner"` binds the App to a server for the tests.

    The server is an embedded one (`pip install 'jsq[server]'`), or the one at `JSQ_TEST_URL`. The run has a
    namespace of its own there, which is removed at the end.
    """

    def setup_test_environment(self, **kwargs: Any) -> None:
        """Start the server, and bind the App to it."""
        super().setup_test_environment(**kwargs)
        self._bound = contextlib.ExitStack()
        server = self._bound.enter_context(JsqServer(os.environ.get("JSQ_TEST_URL", "")))
        self._bound.enter_context(Binding([project_app().load()], server).bound())

    def teardown_test_environment(self, **kwargs: Any) -> None:
        """Close the connections, and stop the server."""
        self._bound.close()
        super().teardown_test_environment(**kwargs)
