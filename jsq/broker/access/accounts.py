"""The accounts and users of roles, in the format of nats-server.conf and as the claims of JWTs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from jsq.broker.access.roles import (
    SubjectPermissions,
    User,
    covers,
    drop_covered,
    read_user,
    user_permissions,
)
from jsq.broker.topology.subjects import Subjects
from jsq.errors import BadOption

DEFAULT_USERS = ("jsq=admin", "submitter=submitter", "worker=worker", "observer=observer")
"""The users to configure if the caller names none."""

RESPONSE_SECONDS = 15
"""Seconds without a reply after which the server ends a request that has several replies.

The reply to an idle pull is a heartbeat, every 5 s.
"""


@dataclass(frozen=True, slots=True)
class Export:
    """Subjects of the namespace's account that other accounts may import."""

    kind: Literal["service", "stream"]
    subject: str
    multiple_replies: bool = False
    accounts: tuple[str, ...] = field(default=(), compare=False)


class Roles:
    """The accounts and users of a namespace, to be written into the configuration of a server."""

    def __init__(self, subjects: Subjects, users: Sequence[User]) -> None:
        if len({user.name for user in users}) != len(users):
            raise BadOption("user", [user.name for user in users], "must be named only once each")
        self.users = tuple(users)
        self._subjects = subjects
        self.main_account = subjects.namespace.upper()
        """The account that holds the streams, and the admins."""

    @classmethod
    def read(
        cls, subjects: Subjects, users: Sequence[str], queues: Sequence[str], nkeys: Mapping[str, str]
    ) -> "Roles":
        """Roles from the `NAME=ROLE` of each user; without users, those of `DEFAULT_USERS`."""
        found = cls(subjects, [read_user(text, queues, nkeys) for text in users or DEFAULT_USERS])
        unknown = set(nkeys) - {user.name for user in found.users}
        if unknown:
            raise BadOption("nkey", min(unknown), "must be that of a named user")
        return found

    def account(self, user: User) -> str:
        return self.main_account if user.is_admin else f"{self.main_account}_{user.name}"

    def permissions(self, user: User) -> SubjectPermissions:
        return user_permissions(self._subjects, user)

    def imports(self, user: User) -> list[Export]:
        """The exports of the namespace's account that the account of a user imports."""
        found = self.permissions(user)
        return [
            *(Export("service", subject) for subject in found.requests),
            *(Export("service", subject, multiple_replies=True) for subject in found.streamed_requests),
            *(
                Export("stream", subject)
                for subject in found.subscriptions
                if not subject.startswith("_INBOX")
            ),
        ]

    def exports(self) -> list[Export]:
        """The exports of the namespace's account, each with the accounts that may import it.

        No export covers another one.
        """
        wanted = [(one, user) for user in self.restricted_users for one in self.imports(user)]
        found: list[Export] = []
        for kind in ("service", "stream"):
            for subject in drop_covered(one.subject for one, _ in wanted if one.kind == kind):
                within = [
                    (one, user) for one, user in wanted if one.kind == kind and covers(subject, one.subject)
                ]
                accounts = tuple(dict.fromkeys(self.account(user) for _, user in within))
                found.append(Export(kind, subject, any(one.multiple_replies for one, _ in within), accounts))
        return found

    @property
    def restricted_users(self) -> list[User]:
        """The users that are not admins. Each has an account of its own."""
        return [user for user in self.users if not user.is_admin]

    # -- nats-server.conf --------------------------------------------------------------------------------

    def conf(self) -> str:
        """The block `accounts` of nats-server.conf."""
        lines = ["accounts {", f"  {self.main_account} {{", "    jetstream: enabled"]
        lines += [
            "    users: [",
            *(line for user in self.users if user.is_admin for line in self._user_lines(user)),
        ]
        lines += [
            "    ]",
            "    exports: [",
            *(f"      {export_line(one)}" for one in self.exports()),
            "    ]",
            "  }",
        ]
        for user in self.restricted_users:
            lines += [f"  # {user.name}: {user.description}", f"  {self.account(user)} {{"]
            lines += ["    users: [", *self._user_lines(user), "    ]", "    imports: ["]
            lines += [
                f'      {{ {one.kind}: {{ account: {self.main_account}, subject: "{one.subject}" }} }}'
                for one in self.imports(user)
            ]
            lines += ["    ]", "  }"]
        return "\n".join([*lines, "}", ""])

    def _user_lines(self, user: User) -> list[str]:
        found = self.permissions(user)
        login = f"nkey: {user.nkey}" if user.nkey else f"user: {user.name}, password: ${user.variable}"
        return [
            "      {",
            f"        {login}",
            "        permissions {",
            *permission_lines("publish", found.requests + found.streamed_requests),
            *permission_lines("subscribe", found.subscriptions),
            "          allow_responses: true",
            "        }",
            "      }",
        ]

    # -- JWTs --------------------------------------------------------------------------------------------

    def claims(self) -> list[dict[str, Any]]:
        """The `name` of each account, its claims under `nats`, and its `users` with their claims.

        The `account` of an import is the name of an account; a JWT needs the public key of that account
        there.
        """
        main = {
            "name": self.main_account,
            "nats": account_claims(exports=[export_claim(one) for one in self.exports()], jetstream=True),
            "users": [self._user_claims(user) for user in self.users if user.is_admin],
        }
        return [main, *(self._restricted_claims(user) for user in self.restricted_users)]

    def _restricted_claims(self, user: User) -> dict[str, Any]:
        imports = [
            {"name": one.subject, "subject": one.subject, "type": one.kind, "account": self.main_account}
            for one in self.imports(user)
        ]
        return {
            "name": self.account(user),
            "nats": account_claims(imports=imports),
            "users": [self._user_claims(user)],
        }

    def _user_claims(self, user: User) -> dict[str, Any]:
        found = self.permissions(user)
        return {
            "name": user.name,
            "nats": {
                "pub": {"allow": list(found.requests + found.streamed_requests)},
                "sub": {"allow": list(found.subscriptions)},
                "resp": {"max": 1, "ttl": 0},
                "subs": -1,
                "data": -1,
                "payload": -1,
                "type": "user",
                "version": 2,
            },
        }


def export_line(one: Export) -> str:
    many = (
        f', response_type: stream, response_threshold: "{RESPONSE_SECONDS}s"' if one.multiple_replies else ""
    )
    return f'{{ {one.kind}: "{one.subject}"{many}, accounts: [{", ".join(one.accounts)}] }}'


def export_claim(one: Export) -> dict[str, Any]:
    claim: dict[str, Any] = {"name": one.subject, "subject": one.subject, "type": one.kind}
    if one.multiple_replies:
        claim |= {"response_type": "Stream", "response_threshold": RESPONSE_SECONDS * 1_000_000_000}
    return claim


def permission_lines(name: str, subjects: Sequence[str]) -> list[str]:
    return [
        f"          {name}: [",
        *(f'            "{subject}"' for subject in subjects),
        "          ]",
    ]


def account_claims(*, jetstream: bool = False, **parts: Any) -> dict[str, Any]:
    limits = dict.fromkeys(("subs", "conn", "leaf", "imports", "exports", "data", "payload"), -1)
    stores = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1) if jetstream else {}
    return {
        **parts,
        "limits": {**limits, "wildcards": True, **stores},
        "default_permissions": {"pub": {}, "sub": {}},
        "type": "account",
        "version": 2,
    }
