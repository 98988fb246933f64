"""Roles: their text form, their permissions, and their conf and claims."""

import json

import pytest

from jsq import Client
from jsq.broker.access.accounts import Roles
from jsq.broker.access.roles import Grant, User, covers, drop_covered, read_user, user_permissions
from jsq.broker.topology.subjects import Subjects
from jsq.errors import BadName, BadOption

NAMES = Subjects("jsq")


def user(text: str) -> User:
    return read_user(text, ("mail",), {})


@pytest.mark.parametrize(
    ("wide", "narrow", "expected"),
    [
        ("a.b", "a.b", True),
        ("a.*", "a.b", True),
        ("a.*", "a.*", True),
        ("a.*", "a.b.c", False),
        ("a.*", "a", False),
        ("a.>", "a", False),
        ("a.>", "a.b.c", True),
        ("a.>", "a.>", True),
        (">", "a", True),
        ("a.*", "a.>", False),
        ("a.*.>", "a.>", False),
        ("a.b", "a.*", False),
        ("a.*.c", "a.b.*", False),
        ("*.b", "a.b", True),
    ],
)
def test_one_subject_covers_another(wide: str, narrow: str, expected: bool) -> None:
    assert covers(wide, narrow) is expected


def test_only_the_widest_subjects_are_kept_without_repetition() -> None:
    assert drop_covered(["a.b", "a.*", "c", "a.*", "c.d"]) == ("a.*", "c", "c.d")


def test_a_user_is_read_with_roles_and_their_queues() -> None:
    found = user("ops=worker:mail,pdf+observer:*+submitter")

    assert found.grants == (
        Grant("worker", ("mail", "pdf")),
        Grant("observer", ("*",)),
        Grant("submitter", ("mail",)),
    )
    assert found.description == "worker of mail, pdf; observer of all queues; submitter of mail"
    assert (found.inbox, found.variable) == ("_INBOX_ops", "OPS_PASSWORD")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("web", BadOption, "must be NAME=ROLE"),
        ("web=", BadOption, "must be one of submitter, worker, observer, admin"),
        ("web=root", BadOption, "role must "),
        ("web=submitter:a.b", BadName, "queue name must be"),
        ("web=submitter:*,>", BadName, "queue name must be"),
        ("web=submitter:", None, ""),
        ("web=worker:*", BadOption, "must be named for a worker"),
        ("=admin", BadName, "user name must be"),
        ("a.b=admin", BadName, "user name must be"),
        ("a}\n=admin", BadName, "user name must be"),
        ("9=admin", BadName, "starting with a letter"),
    ],
)
def test_an_invalid_user_is_refused(text: str, error: type[Exception] | None, message: str) -> None:
    if error is None:
        assert user(text).grants == (Grant("submitter", ("mail",)),)
        return
    with pytest.raises(error, match=message):
        user(text)


def test_a_role_without_a_queue_is_refused() -> None:
    with pytest.raises(BadOption, match="must name at least one queue for a submitter"):
        Grant("submitter")


def test_a_seed_in_place_of_a_public_key_is_refused_and_not_shown() -> None:
    seed = "SUAB" + "C" * 54
    with pytest.raises(BadOption) as caught:
        Client("nats://nowhere").admin.roles("web=submitter", nkeys={"web": seed})

    assert "public key" in str(caught.value)
    assert seed not in str(caught.value)


def test_a_key_without_a_user_and_a_repeated_user_are_refused() -> None:
    with pytest.raises(BadOption, match="must be that of a named user"):
        Client("nats://nowhere").admin.roles("web=submitter", nkeys={"wbe": "U" + "A" * 55})
    with pytest.raises(BadOption, match="must be named only once"):
        Client("nats://nowhere").admin.roles("web=submitter", "web=admin")


def test_only_an_admin_may_access_the_queues_of_others() -> None:
    for role in ("submitter", "worker", "observer"):
        found = user_permissions(NAMES, user(f"one={role}:mail"))
        for subject in (*found.requests, *found.streamed_requests, *found.subscriptions):
            assert not covers(subject, "jsq.q.pay.normal.x")
            assert not covers(subject, "$KV.jsq_jobs.pay.x")
            assert not covers(subject, "$KV.jsq_jobs.pay.x.result")
            assert not covers(subject, "jsq.dead.pay.greet.x")
            assert not covers(subject, "jsq.on.pay.x")
            assert not covers(subject, "$JS.ACK.JSQ_READY_pay.normal.1.1.1.1.0")
            assert not covers(subject, "$JS.API.STREAM.PURGE.JSQ_READY_pay")
            assert not covers(subject, "$JS.API.STREAM.DELETE.JSQ_READY_mail")
            assert "pay" not in subject


def test_roles_of_a_namespace_name_only_its_streams_and_subjects() -> None:
    found = user_permissions(Subjects("shop"), user("one=worker:mail"))

    assert "$JS.API.CONSUMER.MSG.NEXT.SHOP_READY_mail.*" in found.streamed_requests
    assert not [
        subject
        for subject in (*found.requests, *found.streamed_requests, *found.subscriptions)
        if "jsq" in subject.lower()
    ]


def test_an_export_names_its_importers_and_no_exports_overlap() -> None:
    roles = Roles(NAMES, [user("one=submitter:mail"), user("two=submitter:*"), user("jsq=admin")])

    exports = roles.exports()

    [ready] = [one for one in exports if covers(one.subject, "jsq.q.mail.normal.x")]
    assert (ready.subject, ready.accounts) == ("jsq.q.*.*.*", ("JSQ_one", "JSQ_two"))
    for one in exports:
        others = [other for other in exports if other is not one and other.kind == one.kind]
        assert not [other.subject for other in others if covers(other.subject, one.subject)]
    for imported in roles.imports(roles.users[0]):
        assert [one for one in exports if one.kind == imported.kind and covers(one.subject, imported.subject)]


def test_without_users_there_is_one_user_of_each_role() -> None:
    roles = Client("nats://nowhere").admin.roles()

    assert [(one.name, one.description) for one in roles.users] == [
        ("jsq", "admin"),
        ("submitter", "submitter of default"),
        ("worker", "worker of default"),
        ("observer", "observer of default"),
    ]
    assert "$SUBMITTER_PASSWORD" in roles.conf()


def test_the_jwt_claims_grant_the_same_as_the_conf() -> None:
    roles = Client("nats://nowhere").admin.roles("jsq=admin", "web=submitter:mail")

    home, web = json.loads(json.dumps(roles.claims()))

    assert [home["name"], web["name"]] == ["JSQ", "JSQ_web"]
    for subject in web["users"][0]["nats"]["pub"]["allow"]:
        assert f'"{subject}"' in roles.conf()
        assert subject in [one["subject"] for one in web["nats"]["imports"]]
        assert subject in [one["subject"] for one in home["nats"]["exports"]]
