"""References and what else is parsed of anybody's: right ones round-trip, garbage is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, strategies as st

from boxlite._errors import InvalidOptionError
from boxlite._images.challenge import parse_challenges
from boxlite._images.config import parse_config
from boxlite._images.manifest import parse_manifest
from boxlite._images.platform import Platform
from boxlite._images.reference import Reference, is_registry

DIGEST = "sha256:" + "0123456789abcdef" * 4

components = st.from_regex(r"[a-z0-9]{1,8}(?:(?:[._]|__|-{1,3})[a-z0-9]{1,8}){0,2}", fullmatch=True)
repositories = st.lists(components, min_size=1, max_size=4).map("/".join)
hosts = st.one_of(
    st.from_regex(r"[a-zA-Z0-9]{1,8}(?:-[a-z0-9]{1,8})?(?:\.[a-z0-9]{1,8}){1,3}", fullmatch=True),
    st.just("localhost"),
    st.just("Upper"),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
)
registries = st.one_of(
    hosts, st.builds("{}:{}".format, hosts, st.integers(1, 65535)), st.just("docker.io")
).filter(lambda host: host != "index.docker.io")
tags = st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}", fullmatch=True)
digests = st.binary(min_size=32, max_size=32).map(lambda data: f"sha256:{data.hex()}")


@st.composite
def references(draw: st.DrawFn) -> Reference:
    """Any reference that there can be."""
    registry, repository = draw(registries), draw(repositories)
    if registry == "docker.io" and "/" not in repository:
        repository = f"library/{repository}"
    tag, digest = draw(st.none() | tags), draw(st.none() | digests)
    return Reference(registry, repository, tag or (None if digest else "latest"), digest)


@given(references())
@example(Reference("docker.io", "localhost/x", "latest"))
@example(Reference("docker.io", "index.docker.io/x", "latest"))
@example(Reference("docker.io", "library/" + "a" * 64, None, DIGEST))
@example(Reference("docker.io", "library/a/b", "latest"))
def test_reference_round_trips(reference: Reference) -> None:
    """In both of its forms: what a person is shown can be given back."""
    assert Reference.parse(str(reference)) == reference
    assert Reference.parse(reference.familiar) == reference
    assert len(reference.familiar) <= len(str(reference))


@given(st.text(max_size=300) | st.text("aA0.:/@[]_-", max_size=40))
@example("a" * 64)
@example("a/" * 200 + "a")
@example("x@" + DIGEST.upper())
def test_text_is_parsed_or_refused(text: str) -> None:
    """With one error and no other; what is parsed is normal already."""
    try:
        reference = Reference.parse(text)
    except InvalidOptionError:
        return
    assert Reference.parse(str(reference)) == reference
    assert str(Reference.parse(str(reference))) == str(reference)


@pytest.mark.parametrize(
    ("text", "canonical", "familiar"),
    [
        ("alpine", "docker.io/library/alpine:latest", "alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20", "alpine:3.20"),
        ("docker.io/alpine", "docker.io/library/alpine:latest", "alpine:latest"),
        ("index.docker.io/alpine", "docker.io/library/alpine:latest", "alpine:latest"),
        ("index.docker.io/a/b", "docker.io/a/b:latest", "a/b:latest"),
        ("library/alpine", "docker.io/library/alpine:latest", "alpine:latest"),
        ("owner/image", "docker.io/owner/image:latest", "owner/image:latest"),
        ("localhost/image", "localhost/image:latest", "localhost/image:latest"),
        ("localhost:5000/image:1", "localhost:5000/image:1", "localhost:5000/image:1"),
        ("[::1]:5000/a/b", "[::1]:5000/a/b:latest", "[::1]:5000/a/b:latest"),
        ("ghcr.io/a/b@" + DIGEST, "ghcr.io/a/b@" + DIGEST, "ghcr.io/a/b@" + DIGEST),
        ("a:1@" + DIGEST, "docker.io/library/a:1@" + DIGEST, "a:1@" + DIGEST),
        ("UPPER/image", "UPPER/image:latest", "UPPER/image:latest"),
        ("a--b/c__d.e", "docker.io/a--b/c__d.e:latest", "a--b/c__d.e:latest"),
        ("builtin", "docker.io/library/builtin:latest", "builtin:latest"),
    ],
)
def test_reference_is_completed_as_docker_does(text: str, canonical: str, familiar: str) -> None:
    """The rules of its normalize.go."""
    reference = Reference.parse(text)

    assert str(reference) == canonical
    assert reference.familiar == familiar


@pytest.mark.parametrize(
    "text",
    [
        *("", " alpine", "alpine ", "Alpine", "a:", "a@", ":tag", "@" + DIGEST, "a/", "/a", "a//b"),
        *("a:b:c", "a:-b", "a:" + "x" * 129, "-a", "a-", "a..b", "a___b", "a_.b", "../a", "a/../b"),
        *(
            "a@sha256:" + "0" * 63,
            "a@sha512:" + "0" * 128,
            "a@" + DIGEST + "x",
            "a@md5:" + "0" * 32,
        ),
        *(
            "https://ghcr.io/a",
            "host:/a",
            "host:0/a",
            "host:65536/a",
            "host:x/a",
            "[::1/a",
            "[x]/a",
        ),
        *(
            "a.b",
            "a" * 64,
            "b/" * 128 + "b",
            "ghcr.io/",
            "-host.x/a",
            "host-.x/a",
            "a\n",
            "é",
            "a b",
        ),
    ],
)
def test_reference_is_refused(text: str) -> None:
    """What Docker refuses, and what could be more than a part of a URL."""
    if text == "a.b":
        # A name without a slash is never a registry.
        assert Reference.parse(text).repository == "library/a.b"
        return
    with pytest.raises(InvalidOptionError, match="image is"):
        Reference.parse(text)


def test_error_says_which_part_is_wrong() -> None:
    """An upper-case letter is what people get wrong."""
    with pytest.raises(InvalidOptionError, match="its repository must be lower-case words"):
        Reference.parse("Alpine")


@given(st.text(max_size=60))
def test_registry_is_fit_for_a_url(text: str) -> None:
    """Nothing that ends a host, or that begins another."""
    if is_registry(text):
        assert text.isascii()
        assert not set(text) & set("/@?#\\% \t\n")


keys = st.sampled_from(
    [
        *("schemaVersion", "mediaType", "manifests", "layers", "config", "digest", "size", "urls"),
        *("platform", "os", "architecture", "variant", "annotations", "rootfs", "diff_ids", "Env"),
        *("Cmd", "Entrypoint", "Labels", "User", "WorkingDir", "Volumes", "ExposedPorts"),
    ]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=20,
)
documents = st.dictionaries(keys, json_values, max_size=6).map(
    lambda document: json.dumps({"schemaVersion": 2} | document).encode()
)


@given(documents | st.binary(max_size=200))
def test_document_is_parsed_or_refused(data: bytes) -> None:
    """Anything gives a checked object, or ValueError with a text that fits on a screen."""
    for parse in (parse_manifest, parse_config):
        problem = ""
        try:
            parse(data)
        except ValueError as error:
            problem = str(error)
        assert len(problem) < 400


@given(st.lists(st.text(max_size=100) | st.text('Bearer ="\\,xa\t', max_size=60), max_size=4))
def test_challenges_never_fail(headers: list[str]) -> None:
    """Headers are anybody's; schemes and names come out in lower case."""
    for challenge in parse_challenges(headers):
        assert challenge.scheme == challenge.scheme.lower()
        assert all(name == name.lower() for name in challenge.parameters)


@given(st.text("linuxamd64/v.-A ", max_size=20) | st.text(max_size=20))
def test_platform_is_parsed_or_refused(text: str) -> None:
    """And what is parsed reads the same."""
    try:
        platform = Platform.parse(text)
    except InvalidOptionError:
        return
    assert Platform.parse(str(platform)) == platform
    assert platform.rank(platform) is not None
