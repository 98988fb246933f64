"""The encoding of any text as one token of a subject."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jsq.codec.subject_token import MAX_TOKEN_LENGTH, decode_token, encode_token
from jsq.errors import BadName
from jsq.model.job import check_id

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=128)
printable = texts.filter(str.isprintable)
USUAL = st.from_regex(r"[A-Za-z0-9_-]{1,128}", fullmatch=True)


@given(texts)
@example(".")
@example("*")
@example(">")
@example("=")
@example("=3A")
@example("\r\n")
@example("ä b")
@example("\U0001f600" * 128)
def test_any_text_is_encoded_as_one_subject_token_and_decoded(text: str) -> None:
    token = encode_token(text)

    assert decode_token(token) == text
    assert re.fullmatch(r"[-_=A-Za-z0-9]+", token)  # also allowed in the key of a bucket
    assert len(token) <= MAX_TOKEN_LENGTH


@given(texts, texts)
@example("a.b", "a=2Eb")
@example("a", "A")
@example("é", "e\u0301")
def test_different_texts_have_different_tokens(one: str, other: str) -> None:
    assert (encode_token(one) == encode_token(other)) == (one == other)


@given(USUAL)
def test_a_usual_id_is_its_own_token(text: str) -> None:
    assert encode_token(text) == text


def test_an_unusual_id_stays_readable() -> None:
    assert encode_token("user:123") == "user=3A123"
    assert encode_token("a.b") == "a=2Eb"
    assert encode_token("ä") == "=C3=A4"


@given(st.from_regex(r"[-_=A-Za-z0-9.*> ]{1,20}", fullmatch=True))
@example("=3a")  # digits in lower case
@example("=41")  # the code of a letter that needs none
@example("=C3")  # half a character
@example("=")
@example("a=2")
def test_a_token_that_no_text_has_is_refused(token: str) -> None:
    try:
        text = decode_token(token)
    except ValueError:
        return
    assert encode_token(text) == token


def test_an_empty_text_has_no_token() -> None:
    for function in (encode_token, decode_token):
        with pytest.raises(ValueError, match="token"):
            function("")


@given(printable)
@example("user:123")
@example("with a space")
def test_an_id_may_be_any_printable_text(text: str) -> None:
    assert check_id(text) == text


@pytest.mark.parametrize("text", ["", "x" * 129, "a\nb", "a\0b", "\u202e", "\ud800", 7, None, b"a"])
def test_an_id_that_is_not_printable_text_is_refused(text: object) -> None:
    with pytest.raises(BadName, match="printable text of 1 to 128 characters"):
        check_id(text)
