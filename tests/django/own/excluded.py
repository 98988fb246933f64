"""The tests of Django that do not apply to `JsqBackend`, with the reasons.

The runner checks that each exists and fails.
"""

NO_RESULT = "they require that the backend keeps no results; JsqBackend keeps them"
RAISES_HERE = "it requires that the task interrupts the caller; a worker runs it"
IN_MEMORY = "they change a result in the memory of the dummy backend; JsqBackend reads the server"
NO_DEFER = "it requires that a task cannot be deferred; JsqBackend can"

EXCLUDED = {
    "tasks.test_dummy_backend.DummyBackendTestCase.test_refresh_result": IN_MEMORY,
    "tasks.test_dummy_backend.DummyBackendTestCase.test_refresh_result_async": IN_MEMORY,
    "tasks.test_immediate_backend.ImmediateBackendTestCase.test_cannot_get_result": NO_RESULT,
    "tasks.test_immediate_backend.ImmediateBackendTestCase.test_cannot_refresh_result": NO_RESULT,
    "tasks.test_immediate_backend.ImmediateBackendTestCase.test_cannot_pass_run_after": NO_DEFER,
    "tasks.test_immediate_backend.ImmediateBackendTestCase.test_throws_keyboard_interrupt": RAISES_HERE,
}
"""Reasons by the names of the tests."""

MODULES = (
    "tasks.test_dummy_backend",
    "tasks.test_immediate_backend",
    "tasks.test_tasks",
    "tasks.test_custom_backend",
)
"""The modules of the tests."""
