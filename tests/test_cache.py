"""The command that shows the decoded images of a machine and removes what is not needed."""

import os
import re
import time
from pathlib import Path

import pytest

from raymlc.cache import main
from raymlc.data.eviction import stored_images
from raymlc.data.store import about, open_sizes, open_split
from raymlc.data.table import read_table

DAY = 86400


@pytest.fixture
def cache(tiny_table: Path, tmp_path: Path) -> Path:
    """With images at 8, 12 and 16 pixels, opened 40, 20 and 0 days ago."""
    folder = tmp_path / "cache"
    open_sizes(read_table(tiny_table).splits["train"], (8, 12, 16), folder)
    for one in stored_images(folder):
        days = {8: 40, 12: 20, 16: 0}[one.image_size]
        used = time.time() - days * DAY
        os.utime(one.path, (used, used))
    return folder


def sizes(cache: Path) -> list[int]:
    return sorted(one.image_size for one in stored_images(cache))


def test_without_an_option_the_stores_are_shown_and_all_stay(
    cache: Path, tiny_table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--cache", str(cache)]) == 0
    said = capsys.readouterr().out
    lines = [line.split() for line in said.splitlines() if "train.csv" in line]
    assert [line[:3] for line in lines] == [
        [str(tiny_table / "train.csv"), "36", str(size)] for size in (8, 12, 16)
    ]
    assert "3 kept in" in said
    assert "removed" not in said
    assert sizes(cache) == [8, 12, 16]


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--unused", "30d"], [12, 16]),
        (["--unused", "480h"], [16]),
        (["--limit", "1GB"], [8, 12, 16]),
        (["--limit", "45KB"], [12, 16]),
        (["--limit", "30KB"], [16]),
        (["--limit", "0"], []),
        (["--unused", "30d", "--limit", "30KB"], [16]),
        (["--unused", "60d", "--limit", "45KB"], [12, 16]),
    ],
)
def test_the_longest_unused_go_and_the_others_stay(
    cache: Path, capsys: pytest.CaptureFixture[str], options: list[str], left: list[int]
) -> None:
    assert main(["--cache", str(cache), *options]) == 0
    assert sizes(cache) == left
    said = capsys.readouterr().out
    assert f"{len(left)} kept in" in said
    assert len(re.findall(r" removed *\n", said)) == 3 - len(left)
    assert (f"{3 - len(left)} removed: " in said) == (len(left) < 3)


def test_what_a_process_uses_stays_and_that_is_said(
    cache: Path, tiny_table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = open_split(read_table(tiny_table).splits["train"], 12, cache)
    assert main(["--cache", str(cache), "--limit", "0"]) == 0
    assert sizes(cache) == [12]
    assert len(images) == 36
    said = capsys.readouterr().out
    assert "1 more would be removed, but a process uses them now" in said


def test_an_empty_cache_is_said_to_be_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--cache", str(tmp_path / "none")]) == 0
    assert capsys.readouterr().out == f"no decoded images are in {tmp_path / 'none'}\n"


def test_what_is_not_finished_and_what_is_not_known_is_said_to_be_so(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for one in stored_images(cache):
        about(one.path).unlink()
    (cache / "x.building").write_bytes(b"half")
    assert main(["--cache", str(cache)]) == 0
    said = capsys.readouterr().out
    assert said.count("not known") == 3
    assert said.count("not finished") == 1
