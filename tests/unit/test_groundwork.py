"""What boxes share: made once, by whoever comes first and does not fail."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from boxlite._errors import HostError
from boxlite._home import prepare_home
from boxlite._images.images import Images
from boxlite._layout import HomeLayout
from boxlite._options import RuntimeOptions
from boxlite._startup import groundwork as module
from boxlite._startup.groundwork import Groundwork
from boxlite._vm.template import TemplateDraft, list_templates

if TYPE_CHECKING:
    from pathlib import Path


class Site:
    """Groundwork in a home, and a machine that nobody can start.

    Attributes:
        builds: How often a template was begun.
    """

    def __init__(self, home: HomeLayout) -> None:
        self.home = home
        self.groundwork = Groundwork(home, RuntimeOptions(home=home.root), Images(home))
        self.machine: Any = SimpleNamespace(
            cpus=1, memory_mib=1, share=False, shape=lambda: {"cpus": "1"}
        )
        self.builds = 0
        self.failure: Exception | None = None

    async def make(self, shape: dict[str, str]) -> None:
        """Take a second to publish a template, or to fail."""
        self.builds += 1
        await trio.sleep(1)
        if self.failure is not None:
            raise self.failure
        draft = TemplateDraft(self.home, memory_mib=1)
        os.write(draft.state_fd, b"state")
        draft.publish(shape)
        draft.close()

    async def use(self) -> str:
        """Get the template and close it; return its key."""
        template = await self.groundwork.template(self.machine, self.make)
        template.close()
        return template.key


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Groundwork in a fresh home."""
    home = HomeLayout(tmp_path / "home")
    prepare_home(home)
    return Site(home)


async def test_callers_share_one_template(
    site: Site, autojump_clock: trio.testing.MockClock
) -> None:
    """Those that come while it is made, and those that come later."""
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(site.use)
    await site.use()

    assert site.builds == 1
    assert len(list_templates(site.home)) == 1


async def test_a_failure_is_the_callers_that_made_it(
    site: Site, autojump_clock: trio.testing.MockClock
) -> None:
    """The next in line tries itself."""
    site.failure = HostError("no room", fix="Make some.")
    failed = 0

    async def fail() -> None:
        nonlocal failed
        with pytest.raises(HostError, match="no room"):
            await site.use()
        failed += 1
        site.failure = None

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(site.use)

    assert failed == 1
    assert site.builds == 2
    assert len(list_templates(site.home)) == 1


async def test_a_cancelled_build_is_taken_over(
    site: Site, autojump_clock: trio.testing.MockClock
) -> None:
    """By whoever waited for it."""

    async def give_up() -> None:
        with trio.move_on_after(0.5):
            await site.use()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_up)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(site.use)

    assert site.builds == 2
    assert len(list_templates(site.home)) == 1


async def test_a_discarded_template_is_made_anew(
    site: Site, autojump_clock: trio.testing.MockClock
) -> None:
    """It did not work, although it looked sound."""
    key = await site.use()
    site.groundwork.discard_template(key)
    assert list_templates(site.home) == []

    assert await site.use() == key
    assert site.builds == 2


async def test_files_that_cannot_be_read_are_an_error_with_a_fix(
    site: Site, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so is something else that removes what was just made."""

    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(module, "open_template", fail)
        with pytest.raises(HostError, match="cannot be used"):
            await site.use()
    monkeypatch.setattr(module, "open_template", lambda *_: None)
    with pytest.raises(HostError, match="changed as soon as it was made"):
        await site.use()
