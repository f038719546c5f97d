"""What the images of a source are called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, strategies as st
from image_archives import (
    FULL_NAME,
    REF_NAME,
    Files,
    named,
    saved,
)
from image_source_bench import ONE, TWO, Bench, open_bench

from boxlite._errors import (
    InvalidOptionError,
)
from boxlite._images.reference import Reference
from boxlite._images.source_names import name_of_entry, title_of

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A bench."""
    with open_bench(tmp_path) as bench:
        yield bench


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({}, None),
        ({REF_NAME: "latest"}, "docker.io/library/image:latest"),
        ({REF_NAME: "1.2_3-x"}, "docker.io/library/image:1.2_3-x"),
        ({REF_NAME: "alpine:3.20"}, "docker.io/library/alpine:3.20"),
        ({REF_NAME: "ghcr.io/owner/app:v1"}, "ghcr.io/owner/app:v1"),
        ({REF_NAME: "ghcr.io/owner/app"}, "ghcr.io/owner/app:latest"),
        ({REF_NAME: "localhost:5000/app:v1"}, "localhost:5000/app:v1"),
        ({REF_NAME: "../../etc/passwd"}, None),
        ({REF_NAME: "Upper/Case:x"}, None),
        ({REF_NAME: "x" * 129}, "docker.io/library/" + "x" * 129 + ":latest"),
        ({REF_NAME: "x" * 5000 + "/y"}, ValueError),
        ({REF_NAME: 5}, ValueError),
        ({REF_NAME: "v1", FULL_NAME: "docker.io/library/full:v1"}, "docker.io/library/full:v1"),
        ({REF_NAME: "v1", FULL_NAME: "no name!"}, "docker.io/library/image:v1"),
    ],
)
def test_name_follows_from_the_annotations(
    annotations: dict[str, Any], expected: str | type[Exception] | None
) -> None:
    """A full name as it is; a tag is one of what the source is called; nonsense is no name."""
    item = {"annotations": annotations}
    if isinstance(expected, type):
        with pytest.raises(expected):
            name_of_entry(item, "image")
    else:
        found = name_of_entry(item, "image")
        assert (found and str(found)) == expected


@pytest.mark.parametrize("title", ["No Name", "UPPER", "..", "", "a:b", "x" * 300])
def test_tag_in_a_source_without_a_fitting_name_is_no_name(title: str) -> None:
    """A person's directories are called what they like."""
    assert name_of_entry({"annotations": {REF_NAME: "latest"}}, title) is None


@pytest.mark.parametrize(
    ("path", "title"),
    [
        ("/x/alpine", "alpine"),
        ("/x/alpine.tar", "alpine"),
        ("/x/alpine-3.20.tar.gz", "alpine-3.20"),
        ("/x/alpine.oci.tar.zst", "alpine"),
        ("/x/y/..", "x"),
        ("/", ""),
    ],
)
def test_source_is_called_what_its_file_is(path: str, title: str) -> None:
    """Without what says its format."""
    assert title_of(Path(path)) == title


@given(st.dictionaries(st.sampled_from([REF_NAME, FULL_NAME]), st.text() | st.integers()))
def test_no_annotation_breaks_anything(annotations: dict[str, Any]) -> None:
    """A name is a reference that is understood again, or none."""
    try:
        found = name_of_entry({"annotations": annotations}, "image")
    except ValueError:
        return
    assert found is None or Reference.parse(str(found)) == found


async def test_single_image_may_be_renamed(bench: Bench) -> None:
    """Also when it has several names."""
    files = Files()
    one = files.image(ONE)
    files.finish(named(one, "a:1"), named(one, "a:2"))
    [loaded] = await bench.load(files, name="mine:v1")
    assert loaded.name == "docker.io/library/mine:v1"


async def test_several_images_are_not_given_one_name(bench: Bench) -> None:
    """And nothing of them is kept."""
    files = Files()
    files.finish(named(files.image(ONE), "a:1"), named(files.image(TWO), "b:1"))
    with pytest.raises(InvalidOptionError, match=r"name is .*left out: .* has 2 images"):
        await bench.load(files, name="mine")
    assert [*bench.store.digests()] == []


async def test_name_with_a_digest_must_be_the_truth(bench: Bench) -> None:
    """Whoever opens a box from a digest gets what has it, whatever a layout says."""
    files = Files()
    one = files.image(ONE)
    good, bad = f"app@{one['digest']}", f"app@sha256:{'0' * 64}"
    [loaded] = await bench.load(files.finish(named(one, good, FULL_NAME)))
    assert loaded.name == f"docker.io/library/{good}"
    await bench.refused(files.finish(named(one, bad, FULL_NAME)), "is another one")

    files.finish(one)
    [loaded] = await bench.load(files, name=good)
    assert loaded.name == f"docker.io/library/{good}"
    with pytest.raises(InvalidOptionError, match="without a digest"):
        await bench.load(files, name=bad)


async def test_two_images_of_one_name_are_refused(bench: Bench) -> None:
    """There is no telling which is meant."""
    files = Files()
    one, two = files.image(ONE), files.image(TWO)
    await bench.refused(files.finish(named(one, "a:1"), named(two, "a:1")), "two images")
    files = Files()
    files.docker(saved(files, ONE, tags=["a:1"]), saved(files, TWO, tags=["a:1"]))
    await bench.refused(files.tar(), "2 images in it are called a:1")
