"""`jsq provision --roles`, and the errors of commands that a role does not allow."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import Command
from tests.helpers.servers import nats_server

WHO = ("--user", "jsq=admin", "--user", "web=submitter:mail", "--user", "eyes=observer:mail")


@pytest.fixture
async def printed(jsq: Command) -> str:
    """The output for three users, without a server."""
    done = await jsq(
        "provision", "--roles", *WHO, environment={"JSQ_URL": "nats://127.0.0.1:1", "JSQ_NAMESPACE": "jsq"}
    )
    assert (done.code, done.err) == (0, "")
    return done.out


@pytest.fixture
def url(printed: str, tmp_path: Path) -> Iterator[str]:
    """The address of a server with the printed conf."""
    (tmp_path / "accounts.conf").write_text(printed)
    conf = f"jetstream {{ store_dir: '{tmp_path}/js' }}\ninclude ./accounts.conf"
    words = {"JSQ_PASSWORD": "of-jsq", "WEB_PASSWORD": "of-web", "EYES_PASSWORD": "of-eyes"}
    with nats_server(tmp_path, conf, words) as address:
        yield address


async def test_a_role_may_do_its_work_and_is_refused_everything_else(jsq: Command, url: str) -> None:
    def login(user: str) -> dict[str, str]:
        return {"JSQ_URL": url, "JSQ_USER": user, "JSQ_PASSWORD": f"of-{user}", "JSQ_NAMESPACE": "jsq"}

    jsq.write(
        "shop.py", "from jsq import App\napp = App()\napp.queue('mail')\n@app.task\ndef greet(name): ...\n"
    )
    assert (await jsq("provision", "shop:app", environment=login("jsq"))).code == 0
    sent = await jsq("submit", "greet", "you", "--queue", "mail", "--id", "one", environment=login("web"))
    assert (sent.code, sent.out) == (0, "one\n"), sent.err
    seen = await jsq("job", "get", "one", "--queue", "mail", environment=login("eyes"))
    assert (seen.code, seen.json["state"]) == (0, "queued"), seen.err

    for user, words in {
        "web": ("submit", "greet", "--queue", "pay"),
        "eyes": ("job", "cancel", "one", "--queue", "mail"),
    }.items():
        denied = await jsq(*words, environment=login(user))
        assert denied.code == 4
        assert denied.out == ""
        assert denied.err.startswith("jsq: error: not allowed to publish to ")
        assert denied.err.endswith(f" as {user}; see `jsq guide security`\n")

    denied = await jsq("job", "ls", environment=login("web"))
    assert (denied.code, denied.err.count("\n")) == (4, 1)
    denied = await jsq("worker", "shop:app", environment=login("eyes"))
    assert denied.code == 4
    assert "as eyes" in denied.err
    assert "Traceback" not in denied.err
    assert (await jsq("job", "cancel", "one", "--queue", "mail", environment=login("web"))).code == 0


async def test_the_queues_of_an_app_are_those_of_its_roles(jsq: Command, tmp_path: Path) -> None:
    jsq.write("shop.py", "from jsq import App\napp = App()\napp.queue('mail')\napp.queue('pay')\n")

    done = await jsq("provision", "shop:app", "--roles")

    assert done.code == 0
    assert "# worker: worker of mail, pay" in done.out
    names = ("JSQ", "SUBMITTER", "WORKER", "OBSERVER")
    words = {f"{name}_PASSWORD": "p4ss" for name in names}
    with nats_server(tmp_path, f"jetstream {{ store_dir: '{tmp_path}/js' }}\n{done.out}", words) as address:
        assert address.startswith("127.0.0.1:")


async def test_claims_for_jwts_are_printed_as_json(jsq: Command) -> None:
    done = await jsq("provision", "--roles", "--jwt", *WHO)

    assert done.code == 0
    assert [one["name"] for one in json.loads(done.out)] == [
        "T" + jsq.environment["JSQ_NAMESPACE"][1:].upper() + end for end in ("", "_web", "_eyes")
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--roles", "--user", "web"), "must be NAME=ROLE"),
        (("--roles", "--user", "web=root"), "must be one of submitter, worker, observer, admin"),
        (("--roles", "--queue", "a.b"), "queue name must be"),
        (("--roles", "--nkey", "web"), "write name=value"),
        (("--roles", "--nkey", "web=SUABC"), "must be that of a named user"),
        (("--user", "web=submitter"), "need --roles"),
        (("--jwt",), "need --roles"),
    ],
)
async def test_invalid_roles_are_refused(jsq: Command, words: tuple[str, ...], message: str) -> None:
    done = await jsq("provision", *words)

    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1
