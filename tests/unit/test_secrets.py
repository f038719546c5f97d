"""What must not be shown is not: whole, in parts at a cut, or line by line."""

from __future__ import annotations

from hypothesis import given, strategies as st

from boxlite._evidence import Excerpt, printable
from boxlite._secrets import Secrets

values = st.text(st.characters(codec="utf-8"), min_size=4, max_size=20)


def test_values_are_replaced() -> None:
    """The longest first, so that nothing of a longer one is left."""
    secrets = Secrets(["pass", "password-1"])

    assert secrets.hide(b"a password-1 and a pass") == b"a *** and a ***"
    assert secrets.hide_text("password-1") == "***"


def test_short_values_are_words() -> None:
    """A report without any "1" in it could not be read."""
    assert Secrets(["1", "yes", ""]).hide(b"1 yes") == b"1 yes"


def test_each_line_of_a_value_is_one() -> None:
    """A key that is printed comes out in lines, each under a timestamp of its own."""
    secrets = Secrets(["-----BEGIN KEY-----\nMIIEvQIBADAN\n-----END KEY-----\n"])

    assert secrets.hide(b"[1.0] MIIEvQIBADAN\r\n") == b"[1.0] ***\r\n"


def test_a_value_is_found_in_text_that_was_made_printable() -> None:
    """Its control characters are escaped there."""
    secrets = Secrets(["tab\x07here"])

    assert secrets.hide_text(printable(b"x tab\x07here x")) == "x *** x"


def test_half_a_value_at_a_cut_is_hidden_too() -> None:
    """An excerpt begins and ends anywhere."""
    secrets = Secrets(["correct-horse"])
    cut = Excerpt(1000, b"head correct-h", b"ct-horse tail")

    assert secrets.hide_in(cut) == Excerpt(1000, b"head ***", b"*** tail")
    again = Excerpt(1000, b"corrcorrect", b"")
    assert secrets.hide_in(again).head == b"corr***"
    whole = Excerpt(6, b"correc", b"correc")
    assert secrets.hide_in(whole) == whole


def test_the_newest_values_are_the_ones_that_are_known() -> None:
    """A program that runs commands for ever must not fill memory with their values."""
    secrets = Secrets()
    for number in range(3000):
        secrets.add([f"value-{number:05}"])

    assert len(secrets._pieces) == 1024
    assert secrets.hide(b"value-00000 value-02999") == b"value-00000 ***"


@given(st.lists(values, max_size=5), st.lists(st.one_of(values, st.text(max_size=9)), max_size=9))
def test_nothing_hidden_is_left(secret: list[str], words: list[str]) -> None:
    """Whatever is around it."""
    data = " ".join([*words, *secret]).encode()

    left = Secrets(secret).hide(data)

    for value in secret:
        # A blot may happen to be what a secret looks like.
        assert value.encode() not in left or "*" in value
