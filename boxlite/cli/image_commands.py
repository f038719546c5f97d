"""The commands about images, and what they take."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import images
from .outcome import finish
from .pull import pull

if TYPE_CHECKING:
    import boxlite

_PLATFORM = click.option(
    "--platform",
    metavar="OS/ARCH[/VARIANT]",
    help="The machine it is for, of several that an image may have. Default: linux/amd64.",
)
_QUIET = click.option("-q", "--quiet", is_flag=True, help="Do not show how far it is.")


@click.command("pull")
@_PLATFORM
@_QUIET
@click.option(
    "--insecure",
    multiple=True,
    metavar="HOST",
    help="A host, or host:port, that is spoken to in plain HTTP; repeatable."
    " This machine's own always are.",
)
@click.argument("image")
@click.pass_obj
def pull_command(
    options: boxlite.RuntimeOptions,
    *,
    platform: str | None,
    quiet: bool,
    insecure: tuple[str, ...],
    image: str,
) -> None:
    """Get IMAGE from its registry, make it ready, and print its digest.

    IMAGE is a reference such as alpine, python:3.12-slim or ghcr.io/owner/image:tag.
    Credentials are those of Docker's configuration. What is there of the image is not
    downloaded again, and a download that was broken off goes on where it was.
    """
    finish(partial(pull, image=image, platform=platform, insecure=insecure, quiet=quiet), options)


@click.group("images")
def images_group() -> None:
    """The images of the home, from which boxes can be started."""


images_group.add_command(pull_command)


@images_group.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with sizes in bytes.")
@click.pass_obj
def ls_command(options: boxlite.RuntimeOptions, *, as_json: bool) -> None:
    """List the images of the home by their names.

    LAYERS is what was downloaded of each, ROOT the root file system that was made of it.
    """
    finish(partial(images.show, as_json=as_json), options)


@images_group.command("load")
@click.option("--name", help="What the image is to be called, instead of what PATH says.")
@_PLATFORM
@_QUIET
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.pass_obj
def load_command(
    options: boxlite.RuntimeOptions,
    *,
    name: str | None,
    platform: str | None,
    quiet: bool,
    path: Path,
) -> None:
    """Take images from PATH, and print the name and the digest of each.

    PATH is an OCI layout directory, an OCI or ``docker save`` archive, or a root file
    system as a directory or a tarball. Archives may be compressed.
    """
    finish(partial(images.load, path=path, name=name, platform=platform, quiet=quiet), options)


@images_group.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="IMAGE...")
@click.pass_obj
def rm_command(options: boxlite.RuntimeOptions, *, names: tuple[str, ...]) -> None:
    """Remove images that no box uses.

    Each IMAGE is a name, or a digest or at least its first 12 digits. An image that has
    other names keeps those. Exits with 1 when one of them could not be removed.
    """
    finish(partial(images.remove, names=names), options)


@images_group.command("prune")
@click.option("--all", "all_unused", is_flag=True, help="Also all images that no box uses.")
@click.pass_obj
def prune_command(options: boxlite.RuntimeOptions, *, all_unused: bool) -> None:
    """Remove what no image of the home needs, broken-off downloads too.

    Prints the names of images that were removed.
    """
    finish(partial(images.prune, all_unused=all_unused), options)


@images_group.command("inspect")
@click.argument("names", nargs=-1, required=True, metavar="IMAGE...")
@click.pass_obj
def inspect_command(options: boxlite.RuntimeOptions, *, names: tuple[str, ...]) -> None:
    """Print all that is known of images, as JSON.

    Each IMAGE is a name, or a digest or at least its first 12 digits. Exits with 1 when
    one of them is not there.
    """
    finish(partial(images.inspect, names=names), options)
