"""Any text as one token of a NATS subject, and back: `user:123` is `user=3A123`.

Letters, digits, `_` and `-` are not changed, so that usual ids stay readable in subjects. Any other character
is written as its UTF-8 bytes, each as `=` and two hexadecimal digits. A key of a KV bucket may hold every
character of such a token.
"""

import re

MAX_TOKEN_LENGTH = 12 * 128
"""The longest token of 128 characters: four bytes of UTF-8 for each, and three characters for each byte."""


class Token(str):
    """A token that a subject holds as it is: a wildcard, or a token that another program published.

    It is a type of its own, so that an id `*` is never taken for the wildcard.
    """

    __slots__ = ()


ANY = Token("*")
"""The token of a pattern that matches any id."""

STEM = Token("")
"""The token of a subject that ends before its id."""

_plain = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_token = re.compile(r"(?:[A-Za-z0-9_-]|=[0-9A-F]{2})+", re.ASCII)
_escaped = re.compile(r"(?:=[0-9A-F]{2})+", re.ASCII)
_other = re.compile(r"[^A-Za-z0-9_-]+", re.ASCII)


def encode_token(text: str) -> str:
    """The token of a text, which must not be empty and must be valid Unicode; two texts have two tokens."""
    if _plain.fullmatch(text):
        return text
    if not text:
        raise ValueError("a token of a subject cannot be empty")
    return _other.sub(_escape, text)


def decode_token(token: str) -> str:
    """The text of a token. Raises `ValueError` for a token that `encode_token` does not return."""
    if _plain.fullmatch(token):
        return token
    if not _token.fullmatch(token):
        raise ValueError(f"{token!r} is not the token of a text")
    text = _escaped.sub(_unescape, token)
    if encode_token(text) != token:
        raise ValueError(f"{token!r} is not the token of a text")
    return text


def _escape(found: re.Match[str]) -> str:
    return "".join([f"={byte:02X}" for byte in found[0].encode()])


def _unescape(found: re.Match[str]) -> str:
    return bytes.fromhex(found[0].replace("=", "")).decode()
