"""Logins: the options for nats-py, and the errors of a login that fails.

A file that cannot be used is found before the connection is made: nats-py would report it as a server that
does not answer, or refuses the login. No message ever contains a secret.
"""

import re
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from jsq.errors import BadAddress, BrokerError, BrokerUnavailable, NotAllowed, UsageError, shorten
from jsq.settings import Login
from jsq.transport.connection import FIRST_TRIES, PING_SECONDS, choose_server

SCHEMES = ("nats", "tls", "ws", "wss")


def connect_options(login: Login) -> dict[str, Any]:
    """The options of nats-py for a login.

    Raises `UsageError` for a file that cannot be used, `ValueError` for an invalid address.
    """
    for server in login.servers or ("",):  # without a server, nats-py would try localhost
        scheme, _, rest = server.partition("://")
        if scheme not in SCHEMES or not rest.rpartition("@")[2]:
            raise ValueError("a server must have a host and a known scheme")  # `login_error` reads it
    check_keys(login)
    options: dict[str, Any] = {
        "servers": login.servers,
        "connect_timeout": 2,
        "max_reconnect_attempts": FIRST_TRIES,
        "reconnect_time_wait": 0.2,
        "ping_interval": PING_SECONDS,
        "max_outstanding_pings": 2,
        "pending_size": 64 * 2**20,
        "reconnect_to_server_handler": choose_server,
        "user": login.user or None,
        "password": login.password or None,
        "token": login.token or None,
        "nkeys_seed": None if is_seed(login.nkey) else login.nkey or None,
        "nkeys_seed_str": login.nkey if is_seed(login.nkey) else None,
        "user_credentials": login.creds or None,
    }
    if login.ca or login.cert or login.tls_first:
        options["tls"] = tls(login)
        options["tls_handshake_first"] = login.tls_first
    return options


def is_seed(nkey: str) -> bool:
    """Whether an nkey is given directly, and not as the path of a file."""
    return re.fullmatch("SU[A-Z2-7]{56}", nkey, re.ASCII) is not None


def check_keys(login: Login) -> None:
    """Check the contents of key files. Raises `UsageError`."""
    if login.creds:
        text = read_login_file("creds", login.creds)
        if "BEGIN NATS USER JWT" not in text or "BEGIN USER NKEY SEED" not in text:
            raise UsageError(
                f"the creds file {login.creds} must hold the JWT and the seed of a user; check its path"
            )
    if login.nkey and not is_seed(login.nkey) and not is_seed(read_login_file("nkey", login.nkey).strip()):
        raise UsageError(f"the nkey file {login.nkey} must hold the seed of a user (SU...); check its path")


def tls(login: Login) -> ssl.SSLContext:
    """The TLS context of a login: trusted CAs and the client certificate. Raises `UsageError`."""
    for field in ("ca", "cert", "key"):
        if getattr(login, field):
            read_login_file(field, getattr(login, field))
    files = f"the ca file {login.ca}"
    try:
        context = ssl.create_default_context(cafile=login.ca or None)
        if login.cert:
            files = f"the cert file {login.cert}" + (f" with the key file {login.key}" if login.key else "")
            context.load_cert_chain(login.cert, login.key or None)
    except ssl.SSLError as error:
        raise UsageError(f"{files} cannot be used: {shorten(str(error))}; check its path and form") from error
    return context


def read_login_file(field: str, path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError as error:
        raise UsageError(
            f"the {field} file {shorten(path, 300)} cannot be read: {error.strerror}; check its path"
        ) from None


def login_error(login: Login, errors: list[BaseException]) -> BrokerError:
    """The error of a failed connection, from all errors of nats-py, in one line with a fix."""
    shown, last = login.shown or repr(login.url), errors[-1]
    text = " ".join(str(one) for one in errors).lower()
    if "authorization" in text or "authentication" in text:
        return NotAllowed(f"{shown} refused the login{as_user(login)}; check user, password, token or creds")
    if isinstance(last, ImportError):
        return BrokerUnavailable(
            "nkeys and creds files need one more package: pip install 'jsq[nkeys]'", retryable=False
        )
    if "ssl" in text or "tls" in text or "certificate" in text:
        why = shorten(str(errors[0]))
        return BrokerUnavailable(
            f"no TLS connection to {shown}: {why}; check the scheme and ca, cert, key",
            retryable=not any(isinstance(one, ssl.SSLCertVerificationError) for one in errors),
        )
    if isinstance(last, ValueError) or "invalid connect url" in text:
        return BadAddress(shown)
    fix = "start one (`jsq dev`), or name another with JSQ_URL"
    if login.ca and not login.tls_first and not any(isinstance(one, ConnectionError) for one in errors):
        fix += "; if it expects TLS before its INFO message, set JSQ_TLS_FIRST=true"
    return BrokerUnavailable(f"no NATS server answers at {shown}; {fix}")


def as_user(login: Login) -> str:
    """` as alice`, if the login has a name."""
    user = user_of(login)
    return f" as {user}" if user else ""


def user_of(login: Login) -> str:
    """The user's name. A single word before the `@` of an address is a token, not a name."""
    for server in login.servers:
        name, colon, _ = server.partition("://")[2].rpartition("@")[0].partition(":")
        if colon:
            return unquote(name)
    return login.user


def inbox_prefixes(login: Login) -> list[str]:
    """The possible prefixes of reply subjects, in the order in which they are tried."""
    if login.inbox_prefix:
        return [login.inbox_prefix]
    user = user_of(login)
    return ["_INBOX", *([f"_INBOX_{user}"] if re.fullmatch("[A-Za-z0-9_-]+", user, re.ASCII) else [])]
