"""Pictures are decoded once, upright and in RGB, into a store that is whole or not there.

Suffixes: N images, HWC a picture.
"""

import errno
import io
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from raymlc.data import store
from raymlc.data.store import ImageSplit, decode, open_sizes, open_split
from raymlc.data.table import Split, read_table
from raymlc.errors import UserError

Color = tuple[int, ...]
RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255,) * 3, (0,) * 3
ORIENTATION = 0x0112  # the EXIF tag


def halves(mode: str, left: Any, right: Any) -> Image.Image:
    """A picture of 8 x 8 pixels in two colours."""
    image = Image.new(mode, (8, 8), left)
    image.paste(right, (4, 0, 8, 8))
    return image


def grey16(left: int, right: int) -> Image.Image:
    """Halves in 16-bit grey."""
    return Image.fromarray(np.tile(np.repeat(np.array([left, right], np.uint16), 4), (8, 1)))


def palette(**info: Any) -> Image.Image:
    """Red and green halves by palette index 1 and 2."""
    image = halves("P", 1, 2)
    image.putpalette([9, 9, 9, *RED, *GREEN])
    image.info.update(info)
    return image


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


@pytest.fixture
def split(tiny_table: Path) -> Split:
    return read_table(tiny_table).splits["train"]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "not" / "there" / "yet"


def reopened(split: Split) -> Split:
    """The split as a process reads it that starts now."""
    return read_table(split.csv.parent).splits["train"]


def decoded(split: Split, image_size: int = 8) -> NDArray[np.uint8]:
    return np.stack([decode(path, image_size) for path in split.images])


def rows_of(images: ImageSplit) -> NDArray[np.uint8]:
    return images.images_NHWC[images.places_N]


def npy_of(cache: Path) -> Path:
    (path,) = cache.glob("*.npy")
    return path


@pytest.mark.parametrize(
    ("image", "ending", "left", "right"),
    [
        (halves("RGB", RED, BLUE), "png", RED, BLUE),
        (halves("RGB", RED, BLUE), "bmp", RED, BLUE),
        (halves("L", 100, 7), "png", (100,) * 3, (7,) * 3),
        (halves("1", 1, 0), "png", WHITE, BLACK),
        (halves("LA", (100, 255), (100, 0)), "png", (100,) * 3, WHITE),
        (halves("LA", (0, 51), (50, 255)), "png", (204,) * 3, (50,) * 3),
        (palette(), "png", RED, GREEN),
        (palette(), "gif", RED, GREEN),
        (palette(transparency=2), "png", RED, WHITE),
        (palette(transparency=1), "gif", WHITE, GREEN),
        (palette(transparency=bytes([255, 51, 255])), "png", (255, 204, 204), GREEN),
        (halves("RGBA", (*RED, 255), (*BLUE, 0)), "png", RED, WHITE),
        (halves("RGBA", (*RED, 51), (*BLUE, 204)), "png", (255, 204, 204), (51, 51, 255)),
        (halves("CMYK", (0, 255, 255, 0), (255, 0, 0, 0)), "tif", RED, (0, 255, 255)),
        (halves("CMYK", (0, 0, 0, 255), (0, 0, 0, 0)), "tif", BLACK, WHITE),
        (grey16(100 * 256 + 7, 65535), "png", (100,) * 3, WHITE),
        (grey16(0, 3 * 256), "tif", BLACK, (3,) * 3),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_every_kind_of_picture_becomes_the_rgb_that_is_seen_on_white(
    tmp_path: Path, image: Image.Image, ending: str, left: Color, right: Color
) -> None:
    options = {"transparency": image.info["transparency"]} if "transparency" in image.info else {}
    pixels_HWC = decode(saved(image, tmp_path / f"x.{ending}", **options), 8)
    assert pixels_HWC.dtype == np.uint8
    assert pixels_HWC.shape == (8, 8, 3)
    assert (pixels_HWC[:, :4] == left).all()
    assert (pixels_HWC[:, 4:] == right).all()


def test_a_colour_that_is_declared_transparent_is_seen_on_white(tmp_path: Path) -> None:
    path = saved(halves("RGB", RED, BLUE), tmp_path / "x.png", transparency=BLUE)
    pixels_HWC = decode(path, 8)
    assert (pixels_HWC[:, :4] == RED).all()
    assert (pixels_HWC[:, 4:] == WHITE).all()


@pytest.mark.parametrize(
    ("image", "left", "right"),
    [
        (halves("L", 100, 7), (100,) * 3, (7,) * 3),
        (halves("RGB", RED, BLUE), RED, BLUE),
        (halves("CMYK", (0, 255, 255, 0), (255, 0, 255, 0)), RED, GREEN),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_a_jpeg_of_any_mode_becomes_rgb(
    tmp_path: Path, image: Image.Image, left: Color, right: Color
) -> None:
    large = image.resize((64, 64), Image.Resampling.NEAREST)
    pixels_HWC = decode(saved(large, tmp_path / "x.jpg", quality=95), 8).astype(int)
    assert np.abs(pixels_HWC[:, :3] - left).max() <= 4
    assert np.abs(pixels_HWC[:, 5:] - right).max() <= 4


# What the EXIF standard says of a picture stored as "ab" over "cd": how it is seen.
SEEN = {1: "abcd", 2: "badc", 3: "dcba", 4: "cdab", 5: "acbd", 6: "cadb", 7: "dbca", 8: "bdac"}


@pytest.mark.parametrize("ending", ["png", "jpg"])
@pytest.mark.parametrize(("orientation", "seen"), SEEN.items())
def test_a_turned_picture_is_seen_upright(
    tmp_path: Path, orientation: int, seen: str, ending: str
) -> None:
    colors = dict(zip("abcd", [RED, GREEN, BLUE, WHITE], strict=True))
    stored = Image.new("RGB", (64, 64))
    for place, name in enumerate("abcd"):
        corner = (place % 2 * 32, place // 2 * 32)
        stored.paste(colors[name], (*corner, corner[0] + 32, corner[1] + 32))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    pixels_HWC = decode(saved(stored, tmp_path / f"x.{ending}", exif=exif), 8).astype(int)
    for place, name in enumerate(seen):
        quarter_HWC = pixels_HWC[place // 2 * 4 :, place % 2 * 4 :][1:3, 1:3]
        assert np.abs(quarter_HWC - colors[name]).max() <= 12


def test_a_turned_picture_of_16_bit_grey_is_seen_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    path = saved(grey16(10 * 256, 90 * 256), tmp_path / "x.png", exif=exif)
    assert decode(path, 8)[0, :, 0].tolist() == [90] * 4 + [10] * 4


@pytest.mark.parametrize("size", [(40, 8), (8, 40), (31, 17), (8, 8), (3, 5)])
def test_the_whole_picture_is_squashed_into_the_square(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    image = halves("RGB", RED, BLUE).resize(size, Image.Resampling.NEAREST)
    pixels_HWC = decode(saved(image, tmp_path / "x.png"), 12).astype(int)
    assert pixels_HWC.shape == (12, 12, 3)
    assert np.abs(pixels_HWC[:, :2] - RED).max() <= 32
    assert np.abs(pixels_HWC[:, -2:] - BLUE).max() <= 32


def test_a_large_jpeg_is_decoded_as_close_as_its_full_size_would_be(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8))
    large = small.resize((1024, 768), Image.Resampling.BICUBIC)
    path = saved(large, tmp_path / "x.jpg", quality=95)
    with Image.open(path) as file:
        full_HWC = np.asarray(file.convert("RGB").resize((256, 256), Image.Resampling.BICUBIC))
    difference_HWC = np.abs(decode(path, 256).astype(int) - full_HWC)
    assert difference_HWC.mean() < 3
    assert difference_HWC.max() < 25


def test_row_n_of_the_split_is_the_picture_and_the_labels_of_row_n(
    split: Split, cache: Path
) -> None:
    images = open_split(split, 8, cache)
    assert len(images) == 36
    assert images.skipped == 0
    np.testing.assert_array_equal(rows_of(images), decoded(split))
    # The fixture's red tells the row.
    assert rows_of(images)[:, 4, 4, 0].tolist() == [5 * place for place in range(36)]
    assert images.targets.values_NT.tolist() == split.targets.values_NT.tolist()


def test_a_store_is_mapped_read_only(split: Split, cache: Path) -> None:
    images = open_split(split, 8, cache)
    assert isinstance(images.images_NHWC, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images.images_NHWC[0] = 0


def test_a_second_open_opens_no_picture(
    split: Split, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_N = rows_of(open_split(split, 8, cache))

    def refuse(*_: Any) -> NoReturn:
        raise AssertionError("a picture was opened")

    monkeypatch.setattr(Image, "open", refuse)
    np.testing.assert_array_equal(rows_of(open_split(reopened(split), 8, cache)), first_N)


def test_two_sizes_are_two_stores(split: Split, cache: Path) -> None:
    for image_size in (8, 12, 8):
        np.testing.assert_array_equal(
            rows_of(open_split(split, image_size, cache)), decoded(split, image_size)
        )
    assert len(list(cache.glob("*.npy"))) == 2


def test_several_sizes_are_decoded_once_to_the_pixels_of_each_alone(
    split: Split, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for image in split.images:  # at 8 pixels decoded at a quarter of its size, at 30 at its whole
        name, noise = image.with_suffix(".jpg"), NOISE.resize((50, 40))
        image.write_bytes(saved(noise, name, quality=90).read_bytes())
    split, opened, full = reopened(split), [], ImageOps.exif_transpose

    def noting(image: Image.Image) -> Image.Image:
        opened.append(image.size)
        return full(image)

    monkeypatch.setattr(ImageOps, "exif_transpose", noting)
    sizes = open_sizes(split, (30, 8, 40), cache)
    assert sorted(opened) == [(13, 10)] * 36 + [(50, 40)] * 36
    assert list(sizes) == [30, 8, 40]
    for size, images in sizes.items():
        np.testing.assert_array_equal(rows_of(images), decoded(split, size))

    opened.clear()
    alone = open_split(split, 8, cache)
    assert not opened
    np.testing.assert_array_equal(rows_of(alone), rows_of(sizes[8]))
    open_sizes(split, (8, 12), cache)
    assert len(opened) == 36


def test_a_picture_that_is_broken_at_one_size_is_so_at_that_alone(
    split: Split, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(NOISE, split.images[4].with_suffix(".jpg")).replace(split.images[4])
    monkeypatch.setattr(store, "_MOST_PIXELS", 1000)  # of a JPEG, as it is decoded
    sizes = open_sizes(reopened(split), (8, 64), cache, "skip")
    assert {size: images.skipped for size, images in sizes.items()} == {8: 0, 64: 1}
    with pytest.raises(UserError, match=r"in row 5: .*train04.png: .*more than 1,000"):
        open_sizes(reopened(split), (8, 64), cache)


def test_other_rows_in_another_order_are_another_store(split: Split, cache: Path) -> None:
    open_split(split, 8, cache)
    other = split.take([5, 3, 4])
    images = open_split(other, 8, cache)
    np.testing.assert_array_equal(rows_of(images), decoded(split)[[5, 3, 4]])
    assert images.targets.values_NT.tolist() == other.targets.values_NT.tolist()


@pytest.mark.parametrize("change", ["pixels", "size", "time"])
def test_a_changed_picture_is_decoded_anew(split: Split, cache: Path, change: str) -> None:
    path = split.images[7]
    before = path.stat()
    open_split(split, 8, cache)
    if change == "size":
        path.write_bytes(path.read_bytes() + b"more")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        if change == "pixels":
            Image.new("RGB", (10, 8), (1, 2, 3)).save(path)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    images = open_split(reopened(split), 8, cache)
    np.testing.assert_array_equal(rows_of(images), decoded(split))
    assert len(list(cache.glob("*.npy"))) == 2


@pytest.mark.parametrize("length", [0, 5, 64, 127, 128, 1000, -1])
def test_a_store_that_was_cut_short_is_built_anew(split: Split, cache: Path, length: int) -> None:
    open_split(split, 8, cache)
    path = npy_of(cache)
    whole = path.read_bytes()
    path.write_bytes(whole[:length])
    np.testing.assert_array_equal(rows_of(open_split(split, 8, cache)), decoded(split))
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "other_NHWC",
    [
        np.zeros((35, 8, 8, 3), np.uint8),
        np.zeros((36, 8, 8), np.uint8),
        np.zeros((36, 8, 8, 3), np.float32),
    ],
)
def test_a_store_of_another_shape_is_built_anew(
    split: Split, cache: Path, other_NHWC: NDArray[Any]
) -> None:
    open_split(split, 8, cache)
    np.save(npy_of(cache), other_NHWC)
    np.testing.assert_array_equal(rows_of(open_split(split, 8, cache)), decoded(split))


@pytest.mark.parametrize("content", [None, "", "{"])
def test_a_store_without_its_list_of_broken_pictures_is_built_anew(
    split: Split, cache: Path, content: str | None
) -> None:
    split.images[3].write_bytes(b"no picture")
    split = reopened(split)
    assert open_split(split, 8, cache, "skip").skipped == 1
    (path,) = cache.glob("*.json")
    path.unlink()
    if content is not None:
        path.write_text(content)
    assert open_split(split, 8, cache, "skip").skipped == 1


PROLOGUE = """
import sys, time
from pathlib import Path
from raymlc.data import store
from raymlc.data.table import read_table
data, cache, log = map(Path, sys.argv[1:])
decode = store.decode
split = read_table(data).splits["train"]
"""
# Two of these begin to build at the same moment; each notes every picture that it decodes.
BUILD = (
    PROLOGUE
    + """
def slow(path, *sizes):
    with log.open("a") as file:
        file.write(path.name + "\\n")
    time.sleep(0.02)
    return decode(path, *sizes)
store.decode = slow
print("ready", flush=True)
sys.stdin.readline()
images = store.open_split(split, 8, cache)
print(images.images_NHWC[images.places_N].sum(), flush=True)
"""
)
# This one says when it has decoded half of the pictures, and never gets further.
STUCK = (
    PROLOGUE
    + """
def stuck(path, *sizes):
    if path == split.images[18]:
        print("half", flush=True)
    if path in split.images[18:]:
        time.sleep(600)
    return decode(path, *sizes)
store.decode = stuck
store.open_split(split, 8, cache)
"""
)


def start(code: str, split: Split, cache: Path, log: Path) -> subprocess.Popen[str]:
    arguments = [str(split.csv.parent), str(cache), str(log)]
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_two_processes_that_build_at_once_decode_each_picture_once(
    split: Split, cache: Path, tmp_path: Path
) -> None:
    log = tmp_path / "decoded"
    processes = [start(BUILD, split, cache, log) for _ in range(2)]
    assert [line_of(process) for process in processes] == ["ready"] * 2
    sums = [process.communicate("go\n", timeout=60)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    expected_NHWC = decoded(split)
    assert sums == [str(expected_NHWC.sum())] * 2
    assert sorted(log.read_text().split()) == sorted(path.name for path in split.images)
    np.testing.assert_array_equal(np.load(npy_of(cache)), expected_NHWC)


# Each of these opens two sizes, over and over again, in an order of its own.
ORDER = (
    PROLOGUE
    + """
sizes = [8, 12] if log.name == "up" else [12, 8]
for turn in range(40):
    store.open_sizes(split, sizes, cache / str(turn))
"""
)


def test_processes_that_open_sizes_in_other_orders_do_not_wait_for_each_other(
    split: Split, cache: Path, tmp_path: Path
) -> None:
    processes = [start(ORDER, split, cache, tmp_path / name) for name in ("up", "down")]
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0, 0]


def test_a_build_that_was_killed_leaves_nothing_that_is_taken_for_whole(
    split: Split, cache: Path, tmp_path: Path
) -> None:
    process = start(STUCK, split, cache, tmp_path / "decoded")
    assert line_of(process) == "half"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not list(cache.glob("*.npy"))
    assert list(cache.iterdir())  # it had begun
    np.testing.assert_array_equal(rows_of(open_split(split, 8, cache)), decoded(split))
    assert {path.suffix for path in cache.iterdir()} == {".npy", ".lock", ".json"}


def jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
BROKEN = {
    "a JPEG cut short": jpeg(NOISE)[:2000],
    "an empty file": b"",
    "a text": b"no picture at all\n",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_picture_stops_with_its_row_and_file(
    split: Split, cache: Path, content: bytes
) -> None:
    for place in (30, 11):
        split.images[place].write_bytes(content)
    split = reopened(split)
    for _ in range(2):  # while decoding, and from the store
        with pytest.raises(UserError) as refused:
            open_split(split, 8, cache)
        line = str(refused.value)
        assert line.startswith("each image must be readable, but 2 of train.csv are not, the first")
        assert f"in row 12: {split.images[11]}: " in line
        assert "--broken-images skip" in line
        assert "\n" not in line


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_rows_of_broken_pictures_are_left_out_and_counted_if_asked(
    split: Split, cache: Path, content: bytes
) -> None:
    whole = [place for place in range(36) if place not in (0, 11, 35)]
    expected_NHWC = decoded(split)[whole]
    for place in (0, 11, 35):
        split.images[place].write_bytes(content)
    split = reopened(split)
    for _ in range(2):
        images = open_split(split, 8, cache, "skip")
        assert (len(images), images.skipped) == (33, 3)
        np.testing.assert_array_equal(rows_of(images), expected_NHWC)
        assert images.targets.values_NT.tolist() == split.targets.values_NT[whole].tolist()
        assert images.targets.columns == split.targets.columns


def test_whatever_the_decoder_raises_names_the_row(
    split: Split, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Odd(Exception):
        pass

    def odd(path: Path, *sizes: Any) -> NDArray[np.uint8]:
        if path == split.images[4]:
            raise Odd("of a decoder's own")
        return decode(path, *sizes)

    monkeypatch.setattr(store, "decode", odd)
    with pytest.raises(UserError, match=r"in row 5: .*train04.png: Odd: of a decoder's own"):
        open_split(split, 8, cache)


def test_the_first_broken_row_is_named_whichever_is_decoded_first(
    split: Split, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second_has_failed = threading.Event()

    def fail(path: Path, *sizes: Any) -> NDArray[np.uint8]:
        if path == split.images[4]:
            second_has_failed.wait(timeout=1)  # there may be but one thread
        elif path == split.images[5]:
            second_has_failed.set()
        else:
            return decode(path, *sizes)
        raise OSError(f"{path.name} is broken")

    monkeypatch.setattr(store, "decode", fail)
    with pytest.raises(UserError, match=r"in row 5: .*train04.png: OSError: train04.png is broken"):
        open_split(split, 8, cache)


def test_a_picture_mended_in_place_is_decoded_again(split: Split, cache: Path) -> None:
    whole = split.images[3].read_bytes()
    split.images[3].write_bytes(b"no picture")
    with pytest.raises(UserError):
        open_split(reopened(split), 8, cache)
    split.images[3].write_bytes(whole)
    assert len(open_split(reopened(split), 8, cache)) == 36


def test_a_cache_that_is_no_folder_is_refused_with_the_size_needed(
    split: Split, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as refused:
        open_split(split, 256, tmp_path / "file")
    assert str(refused.value).startswith("the decoded images need 7 MiB in ")
    assert str(refused.value).endswith(
        "; make room (see python -m raymlc.cache), or name another folder with --cache"
    )


def test_a_full_disk_is_found_before_the_first_picture_and_nothing_is_left(
    split: Split, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_file: int, _start: int, length: int) -> NoReturn:
        assert length >= 36 * 8 * 8 * 3
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def refuse(*_: Any) -> NoReturn:
        raise AssertionError("a picture was opened")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(UserError, match=r"No space left on device; make room"):
        open_split(split, 8, cache)
    assert {path.suffix for path in cache.iterdir()} <= {".lock"}


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot reserve room")
def test_room_on_the_disk_is_taken_before_the_first_picture(
    split: Split, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def watch(path: Path, *sizes: Any) -> NDArray[np.uint8]:
        (unfinished,) = cache.glob("*.building")
        taken.append(unfinished.stat().st_blocks * 512)
        return decode(path, *sizes)

    monkeypatch.setattr(store, "decode", watch)
    open_split(split, 64, cache)
    assert min(taken) >= 36 * 64 * 64 * 3


def test_progress_sees_every_picture_of_a_build_and_no_open(split: Split, cache: Path) -> None:
    texts, places = [], []

    def watch(done: Iterable[int], text: str, length: int) -> Iterable[int]:
        texts.append((text, length))
        for place in done:
            places.append(place)
            yield place

    open_split(split, 8, cache, progress=watch)
    open_split(split, 8, cache, progress=watch)
    assert texts == [("decoding train.csv once (36 images, 0 MiB)", 36)]
    assert places == list(range(36))


def test_a_cache_below_home_is_found(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    open_split(split, 8, Path("~/cache"))
    assert list((tmp_path / "home" / "cache").glob("*.npy"))


def test_a_store_is_found_by_another_path_to_its_pictures(
    split: Split, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_split(split, 8, cache)
    folder = split.csv.parent
    link = folder.parent / "link"
    link.symlink_to(folder, target_is_directory=True)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("a picture was opened"))
    assert len(open_split(read_table(link).splits["train"], 8, cache)) == 36


def test_a_store_is_found_by_links_to_its_pictures_until_one_leads_elsewhere(
    split: Split, cache: Path
) -> None:
    open_split(split, 8, cache)
    linked = split.csv.parent.parent / "linked"
    shutil.copytree(split.csv.parent, linked)
    links = read_table(linked).splits["train"]
    for link, image in zip(links.images, split.images, strict=True):
        link.unlink()
        link.symlink_to(image)
    open_split(links, 8, cache)
    assert len(list(cache.glob("*.npy"))) == 1

    last = links.images[-1]
    twin = linked / f"twin{last.suffix}"
    shutil.copy2(last, twin)  # with its time of change
    last.unlink()
    last.symlink_to(twin)
    open_split(links, 8, cache)
    assert len(list(cache.glob("*.npy"))) == 2


def test_the_same_pictures_elsewhere_are_another_store(split: Split, cache: Path) -> None:
    open_split(split, 8, cache)
    copy = split.csv.parent.parent / "copy"
    shutil.copytree(split.csv.parent, copy)
    open_split(read_table(copy).splits["train"], 8, cache)
    assert len(list(cache.glob("*.npy"))) == 2


def bomb(width: int, height: int) -> bytes:
    """A PNG in grey of any size, which is a thousandth of its pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    packer = zlib.compressobj(1)
    row = bytes(width + 1)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The sizes of the images for whose pixels memory was taken."""
    taken: list[tuple[int, int]] = []
    prepare = ImageFile.ImageFile.load_prepare

    def noting_prepare(file: ImageFile.ImageFile) -> None:
        taken.append(file.size)
        prepare(file)

    monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", noting_prepare)
    return taken


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (20_000, 4_500)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_before_memory_is_taken_for_its_pixels(
    split: Split, cache: Path, memory: list[tuple[int, int]], width: int, height: int
) -> None:
    split.images[7].write_bytes(bomb(width, height))
    assert split.images[7].stat().st_size < 2_000_000
    with pytest.raises(UserError, match=r"in row 8: .*train07\.png: .*pixels"):
        open_split(reopened(split), 8, cache)
    assert set(memory) == {(10, 8)}


def test_a_side_of_20_000_pixels_alone_is_no_bomb(tmp_path: Path) -> None:
    (tmp_path / "long.png").write_bytes(bomb(20_000, 30))
    assert (decode(tmp_path / "long.png", 8) == 0).all()


def test_a_large_jpeg_is_decoded_at_an_eighth(
    tmp_path: Path, memory: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(Image.new("RGB", (4000, 3000), RED), tmp_path / "large.jpg")
    monkeypatch.setattr(store, "_MOST_PIXELS", 500 * 375)
    assert decode(tmp_path / "large.jpg", 8).shape == (8, 8, 3)
    assert memory == [(500, 375)]
    monkeypatch.setattr(store, "_MOST_PIXELS", 500 * 375 - 1)
    with pytest.raises(ValueError, match="it has 500 × 375 pixels"):
        decode(tmp_path / "large.jpg", 8)


def test_large_images_are_decoded_one_at_a_time(
    split: Split, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_MANY_PIXELS", 79)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    at_once, most = [0], [0]
    transpose = ImageOps.exif_transpose

    def noting_transpose(image: Image.Image) -> Image.Image:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        threading.Event().wait(0.002)
        at_once[0] -= 1
        return transpose(image)

    monkeypatch.setattr(ImageOps, "exif_transpose", noting_transpose)
    open_split(split, 8, cache)
    assert most == [1]


@pytest.mark.parametrize("kind", ["EPS", "PDF", "WMF"])
def test_a_file_of_a_kind_that_may_run_programs_is_no_image_whatever_its_name(
    split: Split, cache: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    contents = {
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) run\n%%EOF\n",
        "PDF": b"%PDF-1.4\n",
        "WMF": b"\xd7\xcd\xc6\x9a\x00\x00" + struct.pack("<4hH", 0, 0, 8, 8, 96) + bytes(60),
    }

    def run(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", run)
    split.images[7].write_bytes(contents[kind])
    with pytest.raises(UserError, match=r"in row 8: .*cannot identify image file"):
        open_split(reopened(split), 8, cache)
