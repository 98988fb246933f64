"""Every way to log in, on a real server: that it works, and which error a failure raises."""

import time
from pathlib import Path

import pytest

from jsq import Client, Login, NotAllowed
from jsq.errors import BrokerError, UsageError
from jsq.settings import QueueSettings, read_login
from tests.helpers.credentials import LIMITS, STORES, USER, Authority, Key, Operator
from tests.helpers.servers import nats_server


def conf(folder: Path, more: str) -> str:
    return f"jetstream {{ store_dir: '{folder}/js' }}\n{more}\n"


async def works(url: str | Login) -> None:
    async with Client(url) as client:
        assert (await (await client.task("any").submit()).status()).state == "queued"


async def refusal(url: str | Login) -> str:
    """The error of a refused login: one line, soon."""
    start_time = time.monotonic()
    with pytest.raises((BrokerError, UsageError)) as caught:
        await Client(url).connect()
    assert time.monotonic() - start_time < 10
    message = str(caught.value)
    assert "\n" not in message
    return f"{type(caught.value).__name__}: {message}"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "tls")


# -- users, tokens, keys -------------------------------------------------------------------------------------


async def test_login_with_a_user_and_a_password(tmp_path: Path) -> None:
    with nats_server(tmp_path, conf(tmp_path, "authorization { user: ann, password: s3cret }")) as address:
        await works(f"nats://ann:s3cret@{address}")
        await works(Login(url=address, user="ann", password="s3cret"))
        await works(read_login(address, {"JSQ_USER": "ann", "JSQ_PASSWORD": "s3cret"}))
        for wrong in (f"nats://ann:wr0ng@{address}", Login(url=address, user="ann", password="wr0ng")):
            message = await refusal(wrong)
            assert message.startswith(f"NotAllowed: nats://{address} refused the login as ann; check user, ")
            assert "wr0ng" not in message
        assert (await refusal(address)).startswith(f"NotAllowed: nats://{address} refused the login; check")


async def test_login_with_a_token(tmp_path: Path) -> None:
    with nats_server(tmp_path, conf(tmp_path, "authorization { token: t0k3n }")) as address:
        await works(f"nats://t0k3n@{address}")
        await works(Login(url=address, token="t0k3n"))
        await works(read_login(address, {"JSQ_TOKEN": "t0k3n"}))
        for wrong in (f"nats://wr0ng@{address}", Login(url=address, token="wr0ng")):
            message = await refusal(wrong)
            assert message.startswith(f"NotAllowed: nats://{address} refused the login; check")
            assert "wr0ng" not in message


async def test_login_with_an_nkey_from_a_file_or_a_seed(tmp_path: Path) -> None:
    key, other = Key(USER), Key(USER)
    file = tmp_path / "user.nk"
    file.write_text(key.seed)
    users = f"authorization {{ users: [ {{ nkey: {key.public} }} ] }}"
    with nats_server(tmp_path, conf(tmp_path, users)) as address:
        await works(Login(url=address, nkey=str(file)))
        await works(Login(url=address, nkey=key.seed))
        await works(read_login(address, {"JSQ_NKEY": str(file)}))
        message = await refusal(Login(url=address, nkey=other.seed))
        assert message.startswith(f"NotAllowed: nats://{address} refused the login; check")
        assert other.seed not in message


async def test_login_with_a_creds_file_signed_by_an_operator(tmp_path: Path) -> None:
    operator, other_operator = Operator(), Operator()
    for one in (operator, other_operator):
        one.account("A", {"type": "account", "version": 2, "limits": LIMITS | STORES})
    user = {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1}
    files = {
        "good": operator.user("A", "ann", user),
        "old": operator.user("A", "bob", user, exp=int(time.time()) - 60),
        "strange": other_operator.user("A", "eve", user),
    }
    for name, text in files.items():
        (tmp_path / f"{name}.creds").write_text(text)
    with nats_server(tmp_path, conf(tmp_path, operator.conf())) as address:
        await works(Login(url=address, creds=str(tmp_path / "good.creds")))
        await works(read_login(address, {"JSQ_CREDS": str(tmp_path / "good.creds")}))
        for name in ("old", "strange"):
            message = await refusal(Login(url=address, creds=str(tmp_path / f"{name}.creds")))
            assert message.startswith(f"NotAllowed: nats://{address} refused the login; check")


@pytest.mark.parametrize("field", ["creds", "nkey"])
@pytest.mark.parametrize("text", [None, "", "no key at all", "SUAAAA"])
async def test_an_unusable_key_file_is_named(tmp_path: Path, field: str, text: str | None) -> None:
    path = tmp_path / "keys"
    if text is not None:
        path.write_text(text)
    with nats_server(tmp_path, conf(tmp_path, "authorization { token: t }")) as address:
        message = await refusal(Login.read(url=address, **{field: str(path)}))
        assert message.startswith(f"UsageError: the {field} file {path} ")
        assert "check its path" in message
        assert not text or text not in message


async def test_login_with_roles_as_jwts(tmp_path: Path) -> None:
    operator = Operator()
    roles = Client("nats://nowhere").admin.roles("jsq=admin", "web=submitter:mail", "hands=worker:mail")
    files: dict[str, str] = {}
    for account in roles.claims():
        for one in account["nats"].get("imports", ()):
            one["account"] = operator.public(one["account"])
        operator.account(account["name"], account["nats"])
        for user in account["users"]:
            file = tmp_path / f"{user['name']}.creds"
            file.write_text(operator.user(account["name"], user["name"], user["nats"]))
            files[user["name"]] = str(file)
    with nats_server(tmp_path, conf(tmp_path, operator.conf())) as address:

        def client(user: str) -> Client:
            return Client(Login(url=address, creds=files[user], inbox_prefix=f"_INBOX_{user}"))

        async with client("jsq") as admin, client("web") as web:
            await admin.admin.provision({"mail": QueueSettings(), "pay": QueueSettings()})
            job = await web.task("any").options(queue="mail").submit()
            assert (await job.status()).state == "queued"
            assert (await job.cancel()).state == "cancelled"
            with pytest.raises(NotAllowed, match=r"not allowed to publish to jsq\.q\.pay\."):
                await web.task("any").options(queue="pay").submit()
            with pytest.raises(NotAllowed, match="not allowed to publish to "):
                await web.queues.purge("mail")


# -- TLS -----------------------------------------------------------------------------------------------------


async def test_a_connection_with_tls(tmp_path: Path, authority: Authority) -> None:
    authority.certificate("server")
    other_authority = Authority(tmp_path / "other")
    with nats_server(tmp_path, conf(tmp_path, authority.conf("server"))) as address:
        await works(Login(url=f"tls://{address}", ca=authority.ca))
        await works(read_login(f"tls://{address}", {"JSQ_CA": authority.ca}))
        for wrong in (Login(url=f"tls://{address}", ca=other_authority.ca), f"tls://{address}"):
            message = await refusal(wrong)
            assert message.startswith(f"BrokerUnavailable: no TLS connection to tls://{address}: ")
            assert "certificate verify failed" in message
            assert message.endswith("check the scheme and ca, cert, key")


async def test_a_server_with_an_untrusted_certificate_does_not_hide_the_next_one(
    tmp_path: Path, authority: Authority
) -> None:
    other_authority = Authority(tmp_path / "other")
    other_authority.certificate("server")
    authority.certificate("server")
    wrong, right = (tmp_path / "wrong", tmp_path / "right")
    for directory in (wrong, right):
        directory.mkdir()
    with (
        nats_server(wrong, conf(wrong, other_authority.conf("server"))) as untrusted,
        nats_server(right, conf(right, authority.conf("server"))) as trusted,
    ):
        await works(Login(url=f"tls://{untrusted},tls://{trusted}", ca=authority.ca))


async def test_an_expired_certificate_or_one_for_another_name_is_refused(
    tmp_path: Path, authority: Authority
) -> None:
    for name, days, names, why in (
        ("expired", -1, "IP:127.0.0.1", "certificate has expired"),
        ("other", 2, "DNS:nats.example.net", "IP address mismatch"),
    ):
        authority.certificate(name, days=days, names=names)
        folder = tmp_path / name
        folder.mkdir()
        with nats_server(folder, conf(folder, authority.conf(name))) as address:
            message = await refusal(Login(url=f"tls://{address}", ca=authority.ca))
            assert message.startswith(f"BrokerUnavailable: no TLS connection to tls://{address}: ")
            assert why in message


async def test_a_connection_with_mutual_tls(tmp_path: Path, authority: Authority) -> None:
    authority.certificate("server")
    cert = authority.certificate("client")
    key = cert.replace(".pem", "-key.pem")
    verify = authority.conf("server", f"ca_file: '{authority.ca}'", "verify: true")
    with nats_server(tmp_path, conf(tmp_path, verify)) as address:
        await works(Login(url=f"tls://{address}", ca=authority.ca, cert=cert, key=key))
        variables = {"JSQ_CA": authority.ca, "JSQ_CERT": cert, "JSQ_KEY": key}
        await works(read_login(f"tls://{address}", variables))
        message = await refusal(Login(url=f"tls://{address}", ca=authority.ca))
        assert message.startswith(f"BrokerUnavailable: no TLS connection to tls://{address}: ")
        assert message.endswith("check the scheme and ca, cert, key")


@pytest.mark.parametrize("field", ["ca", "cert", "key"])
async def test_an_unusable_tls_file_is_named(tmp_path: Path, authority: Authority, field: str) -> None:
    cert = authority.certificate("server")
    files = {"ca": authority.ca, "cert": cert, "key": cert.replace(".pem", "-key.pem")}
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("no certificate")
    with nats_server(tmp_path, conf(tmp_path, authority.conf("server"))) as address:
        for path in (tmp_path / "absent.pem", rubbish):
            message = await refusal(Login.read(url=f"tls://{address}", **files | {field: str(path)}))
            assert message.startswith("UsageError: the ")
            assert f"the {field} file {path}" in message


async def test_a_connection_with_tls_before_the_greeting(tmp_path: Path, authority: Authority) -> None:
    authority.certificate("server")
    with nats_server(tmp_path, conf(tmp_path, authority.conf("server", "handshake_first: true"))) as address:
        first = Login(url=f"tls://{address}", ca=authority.ca, tls_first=True)
        await works(first)
        await works(read_login(f"tls://{address}", {"JSQ_CA": authority.ca, "JSQ_TLS_FIRST": "true"}))
        message = await refusal(Login(url=f"tls://{address}", ca=authority.ca))
        assert message.startswith("BrokerUnavailable: ")
        assert "JSQ_TLS_FIRST=true" in message
    folder = tmp_path / "plain"
    folder.mkdir()
    with nats_server(folder, conf(folder, "")) as address:
        message = await refusal(first.replace(url=f"tls://{address}"))
        assert message.startswith(f"BrokerUnavailable: no TLS connection to tls://{address}: ")
