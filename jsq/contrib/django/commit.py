"""Submits that wait for the end of a transaction."""

import functools
from typing import Generic, ParamSpec, TypeVar

from django.db import transaction

from jsq.client.submitter import Submitter

P = ParamSpec("P")
R = TypeVar("R")


class OnCommit(Generic[P]):
    """Submits jobs of one task once a transaction has committed; see `on_commit`."""

    def __init__(self, submitter: Submitter[P, R], *, using: str | None, robust: bool) -> None:
        self._submitter = submitter
        self._using = using
        self._robust = robust

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Submit a job when the transaction commits; without a transaction at once.

        The arguments are checked and encoded now. Raises `BadArguments`. The commit raises the errors of the
        submit, when the transaction has ended already.
        """
        packed = self._submitter.target.pack(args, kwargs)
        submit = functools.partial(self._submitter.blocking.submit_packed, packed)
        transaction.on_commit(submit, using=self._using, robust=self._robust)


def on_commit(submitter: Submitter[P, R], *, using: str | None = None, robust: bool = False) -> OnCommit[P]:
    """A task, or a task with options, whose jobs are submitted when the transaction commits.

    `on_commit(send).delay(order.id)`. A rollback submits nothing. `using` is the database, and `robust` logs
    an error of the submit instead of raising it; see `django.db.transaction.on_commit`. If the process dies
    between the commit and the submit, the job is not submitted.
    """
    return OnCommit(submitter, using=using, robust=robust)
