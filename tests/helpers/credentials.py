"""Keys, JWTs and certificates of the tests, signed as an operator and a CA sign them."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nkeys  # type: ignore[import-untyped]  # it has no types
import pytest

OPERATOR, ACCOUNT, USER = nkeys.PREFIX_BYTE_OPERATOR, nkeys.PREFIX_BYTE_ACCOUNT, nkeys.PREFIX_BYTE_USER

Claims = dict[str, Any]


class Key:
    """A key pair of an operator, an account or a user."""

    def __init__(self, kind: int) -> None:
        self.seed: str = nkeys.encode_seed(os.urandom(32), kind).decode()
        self._pair = nkeys.from_seed(self.seed.encode())
        self.public: str = self._pair.public_key.decode()

    def sign(self, name: str, whose: str, nats: Claims, **claims: Any) -> str:
        """Return a JWT for the public key `whose`."""
        about = {"iss": self.public, "sub": whose, "name": name, "iat": 0, "nats": nats, **claims}
        signed = ".".join(encoded(json.dumps(part).encode()) for part in (KIND, about))
        return f"{signed}.{encoded(self._pair.sign(signed.encode()))}"


KIND = {"typ": "JWT", "alg": "ed25519-nkey"}


def encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def creds(jwt: str, seed: str) -> str:
    """The text of a creds file."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )


class Operator:
    """Signs accounts and users, and writes the conf of a server that trusts the operator."""

    def __init__(self) -> None:
        self._key = Key(OPERATOR)
        self._accounts: dict[str, Key] = {}
        self._signed: dict[str, str] = {}
        self.account("SYS", {"type": "account", "version": 2, "limits": LIMITS})

    def public(self, account: str) -> str:
        """The public key of an account. The account may be signed later."""
        return self._accounts.setdefault(account, Key(ACCOUNT)).public

    def account(self, name: str, nats: Claims) -> None:
        self._signed[name] = self._key.sign(name, self.public(name), nats)

    def user(self, account: str, name: str, nats: Claims, **claims: Any) -> str:
        """The creds of a new user."""
        key = Key(USER)
        return creds(self._accounts[account].sign(name, key.public, nats, **claims), key.seed)

    def conf(self) -> str:
        operator = self._key.sign("operator", self._key.public, {"type": "operator", "version": 2})
        preload = "\n".join(f"{self.public(name)}: {jwt}" for name, jwt in self._signed.items())
        return (
            f"operator: {operator}\nsystem_account: {self.public('SYS')}\nresolver: MEMORY\n"
            f"resolver_preload: {{\n{preload}\n}}\n"
        )


LIMITS = dict.fromkeys(("subs", "conn", "leaf", "imports", "exports", "data", "payload"), -1) | {
    "wildcards": True
}
STORES = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)


class Authority:
    """A certificate authority with a folder of its own. Skips the test if openssl is missing."""

    def __init__(self, folder: Path) -> None:
        openssl = shutil.which("openssl")
        if openssl is None:
            pytest.skip("openssl, which creates the certificates, is not on the PATH")
        self._openssl = openssl
        self._folder = folder
        folder.mkdir()
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "ca-key.pem")
        self._run("req", "-x509", *key, "-out", "ca.pem", "-days", "2", "-subj", "/CN=ca of jsq's tests")
        self.ca = str(folder / "ca.pem")

    def certificate(self, name: str, *, days: int = 2, names: str = "DNS:localhost,IP:127.0.0.1") -> str:
        """Create `name.pem`, with its key in `name-key.pem`; returns the path of `name.pem`."""
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}-key.pem")
        request = ("-out", f"{name}.csr", "-subj", f"/CN={name}", "-addext", f"subjectAltName={names}")
        self._run("req", *key, *request)
        ours = ("-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial", "-copy_extensions", "copy")
        self._run("x509", "-req", "-in", f"{name}.csr", *ours, "-days", str(days), "-out", f"{name}.pem")
        return str(self._folder / f"{name}.pem")

    def conf(self, name: str, *more: str) -> str:
        """The `tls` block of a server with a certificate of that name."""
        lines = [
            f"cert_file: '{self._folder}/{name}.pem'",
            f"key_file: '{self._folder}/{name}-key.pem'",
            *more,
        ]
        return "tls {\n" + "\n".join(lines) + "\n}\n"

    def _run(self, *words: str) -> None:
        command: Sequence[str] = (self._openssl, *words)
        subprocess.run(command, cwd=self._folder, check=True, capture_output=True, timeout=60)
