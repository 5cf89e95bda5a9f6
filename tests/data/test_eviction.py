"""A cache of decoded images becomes smaller on demand, and never under a process that uses it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from raymlc.data.eviction import (
    StoredImages,
    beyond_limit,
    evict,
    parse_size,
    stored_images,
)
from raymlc.data.store import open_sizes, open_split
from raymlc.data.table import Split, read_table
from raymlc.errors import UserError


@pytest.fixture
def split(tiny_table: Path) -> Split:
    return read_table(tiny_table).splits["train"]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def aged(path: Path, seconds: float) -> None:
    os.utime(path, (seconds, seconds))


def test_a_cache_that_is_not_there_holds_nothing(cache: Path) -> None:
    assert stored_images(cache) == []


def test_the_stores_tell_their_table_rows_size_and_bytes_longest_unused_first(
    split: Split, cache: Path
) -> None:
    open_sizes(split, (8, 12), cache)
    for one in stored_images(cache):
        aged(one.path, 1000 + one.image_size)
    open_split(split, 8, cache)  # which is a use
    small, large = sorted(stored_images(cache), key=lambda one: one.image_size)
    assert stored_images(cache) == [large, small]
    assert large.used == 1012 < small.used
    for one, image_size in ((small, 8), (large, 12)):
        assert (one.csv, one.rows, one.image_size) == (str(split.csv), 36, image_size)
        assert one.size == one.path.stat().st_size >= 36 * image_size**2 * 3


def test_what_is_evicted_is_gone_and_decoded_again_when_it_is_needed(
    split: Split, cache: Path
) -> None:
    before_NHWC = open_split(split, 8, cache).images_NHWC.copy()
    (one,) = stored_images(cache)
    assert evict(one)
    assert {path.suffix for path in cache.iterdir()} == {".lock"}
    assert stored_images(cache) == []
    assert (open_split(split, 8, cache).images_NHWC == before_NHWC).all()


def test_a_store_stays_as_long_as_anybody_has_it_mapped(split: Split, cache: Path) -> None:
    images = open_split(split, 8, cache)
    (one,) = stored_images(cache)
    assert not evict(one)
    rows_NHWC = images.images_NHWC[3:5]
    del images
    assert not evict(one)
    del rows_NHWC
    assert evict(one)


USE = """
import sys
from pathlib import Path
from raymlc.data.store import open_split
from raymlc.data.table import read_table
split = read_table(Path(sys.argv[1])).splits["train"]
images = open_split(split, 8, Path(sys.argv[2]))
print("open", flush=True)
sys.stdin.readline()
"""


def test_a_store_stays_while_another_process_uses_it_and_not_after_its_death(
    split: Split, cache: Path
) -> None:
    arguments = [sys.executable, "-c", USE, str(split.csv.parent), str(cache)]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    (one,) = stored_images(cache)
    assert not evict(one)
    assert one.path.exists()
    process.kill()
    process.communicate()
    assert evict(one)


def test_what_a_killed_build_left_is_evicted_and_what_is_being_built_is_not(cache: Path) -> None:
    cache.mkdir()
    (cache / "a.building").write_bytes(bytes(1000))
    (one,) = stored_images(cache)
    assert (one.csv, one.rows, one.size) == ("", 0, 1000)
    with FileLock(cache / "a.lock"):
        assert not evict(one)
    assert evict(one)
    assert not one.path.exists()


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"no store at all"])
def test_what_is_no_whole_store_can_be_evicted(cache: Path, content: bytes) -> None:
    cache.mkdir()
    (cache / "a.npy").write_bytes(content)
    (one,) = stored_images(cache)
    assert (one.csv, one.rows, one.size) == ("", 0, len(content))
    assert evict(one)


@given(sizes=st.lists(st.integers(0, 100)), limit=st.integers(0, 300))
def test_beyond_a_limit_as_few_go_as_must_the_longest_unused_first(
    sizes: list[int], limit: int
) -> None:
    stores = [StoredImages(Path(str(n)), "", 1, 8, size, n) for n, size in enumerate(sizes)]
    gone = beyond_limit(stores, limit)
    assert gone == stores[: len(gone)]
    assert sum(sizes[len(gone) :]) <= limit
    if gone:
        assert sum(sizes[len(gone) - 1 :]) > limit


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("0MB", 0), ("7b", 7), ("2kB", 2000), ("500MB", 5e8), ("500 MB", 5e8),
        ("1.5GB", 1.5e9), ("1tb", 1e12), ("1KiB", 1024), ("2MiB", 2**21), ("1GiB", 2**30),
        ("3TiB", 3 * 2**40),
    ],
)  # fmt: skip
def test_a_size_is_read_in_decimal_and_binary_units(text: str, size: float) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "50", "50G", "-1GB", "1e3MB", "1,5GB", "٥MB", "5 XB"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UserError, match="a size is a number with MB, GB or TB, such as 50GB"):
        parse_size(text)


@given(st.floats(0, 1e6), st.sampled_from(["B", "kB", "MB", "GB", "TB", "KiB", "MiB"]))
def test_a_size_comes_back_from_its_text(number: float, unit: str) -> None:
    rounded = f"{number:.3f}"
    factor = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 2**10, "MiB": 2**20}
    assert parse_size(f"{rounded}{unit}") == float(rounded) * factor[unit]
