"""Every way to die has its own story, and the page in docs/ shows each as its user sees it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from crash_stories import STORIES, Story, page

import boxlite

PAGE = Path(boxlite.__file__).parent.parent / "docs" / "crash-reports.md"


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_a_death_is_told(story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By kind and headline, with a cause, likely causes, and the files to open next."""
    report = story.tell(tmp_path, monkeypatch)

    assert report.kind is story.kind
    assert report.headline.endswith(story.headline)
    assert report.cause
    assert report.likely_causes
    assert [name for name, _ in report.files] == ["console", "stderr", "exit file"]
    assert report.render().replace("\n", "").isprintable()
    assert "tiger-42" not in report.render() + report.render_json() + report.debug_info
    assert json.loads(report.render_json()) == report.as_dict()


def test_no_two_stories_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two causes that read alike would send somebody the wrong way."""
    told = [
        story.tell(tmp_path / story.name, monkeypatch).render().replace(story.name, "")
        for story in STORIES
    ]

    assert len(set(told)) == len(STORIES)


def test_the_page_shows_the_stories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are told now: ``nox -s docs -- --write`` brings it up to date."""
    reports = {story.name: story.tell(tmp_path / story.name, monkeypatch) for story in STORIES}
    text = page(reports, tmp_path)

    if os.environ.get("BOXLITE_WRITE_DOCS"):
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(text)
    assert PAGE.read_text() == text
