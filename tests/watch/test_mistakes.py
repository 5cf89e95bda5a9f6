"""The contact sheet: one page that needs nothing else, and says any text as it is."""

import base64
import math
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import raymlc.watch.mistakes as sheets
from raymlc.labels import Head
from raymlc.training.mistakes import Mistake, Mistakes
from raymlc.watch.mistakes import contact_sheet, csv_rows, summary

KIND, MARKS = Head("kind", ("a", "b")), Head("marks", ("x", "y"), multi_hot=True)


class Page(HTMLParser):
    """What a browser would make of a page: its texts by tag, its pictures, and all attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.images: list[dict[str, str | None]] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in ("img", "br", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.setdefault(self.open[-1], []).append(data.strip())


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture of 30 x 20 pixels."""
    Image.new("RGB", (30, 20), (200, 30, 30)).save(tmp_path / "red.png")
    return tmp_path / "red.png"


def mistakes_of(head: Head, *worst: Mistake, known: int = 50) -> Mistakes:
    return Mistakes(head, worst, len(worst), known)


def pixels_of(image: dict[str, str | None]) -> Image.Image:
    start = "data:image/jpeg;base64,"
    url = image["src"] or ""
    assert url.startswith(start)
    return Image.open(BytesIO(base64.b64decode(url.removeprefix(start))))


def test_each_picture_says_its_label_and_the_models_below_it_and_to_whom_cannot_see(
    picture: Path,
) -> None:
    first = Mistake(picture, "red.png", 7, "", "a", "b", 0.0123, 0.9)
    second = Mistake(picture, "red.png", 9, "y", "no", "yes", math.nan, math.nan)
    found = [mistakes_of(KIND, first), mistakes_of(MARKS, second), mistakes_of(Head("hat", ("p",)))]
    page = Page(contact_sheet(found, "val.csv", "runs/7/best"))
    assert [image["alt"] for image in page.images] == [
        "red.png, labelled a, predicted b",
        "red.png, labelled y: no, predicted y: yes",
    ]
    assert page.texts["b"] == ["a", "b", "y: no", "y: yes"]
    assert page.texts["figcaption"] == ["label", "1.2%", "model", "90.0%", "label", "model"]
    assert page.texts["small"] == ["row 7, red.png", "row 9, red.png"]
    assert page.texts["h2"] == page.texts["a"] == ["kind", "marks", "hat"]
    assert page.texts["h1"] == ["Labels of val.csv that the model disagrees with"]
    assert page.texts["p"][0].startswith("Model: runs/7/best. ")
    assert page.texts["p"][1:] == [
        "The model disagrees with 1 of 50 labels; all here.",
        "The model disagrees with 1 of 50 labels of single classes; all here.",
        "The model agrees with all of 50 labels.",
    ]
    assert not page.open


def test_the_page_needs_nothing_beside_itself_and_fits_a_phone(picture: Path) -> None:
    one = Mistake(picture, "red.png", 1, "", "a", "b", 0.1, 0.9)
    page = Page(contact_sheet([mistakes_of(KIND, one)], "val.csv", "best"))
    places = {name: value for name, value in page.attributes if name in ("src", "href")}
    assert places["href"] == "#head0"
    assert ("id", "head0") in page.attributes
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "url(" not in sheets._STYLE
    assert "@import" not in sheets._STYLE
    assert ("content", "width=device-width, initial-scale=1") in page.attributes


def test_any_text_is_shown_as_it_is(picture: Path) -> None:
    nasty = "<script>alert(1)</script> & \"quoted\" 'too' </b> größer"
    single = Mistake(picture, nasty, 1, "", nasty, nasty, 0.1, 0.9)
    multi = Mistake(picture, nasty, 1, nasty, "yes", "no", 0.1, 0.9)
    found = [mistakes_of(Head(nasty, ()), single), mistakes_of(Head(nasty, (), True), multi)]
    page = Page(contact_sheet(found, nasty, nasty))
    assert "script" not in page.tags
    assert [image["alt"] for image in page.images] == [
        f"{nasty}, labelled {nasty}, predicted {nasty}",
        f"{nasty}, labelled {nasty}: yes, predicted {nasty}: no",
    ]
    assert page.texts["h2"] == [nasty, nasty]
    assert page.texts["b"] == [nasty, nasty, f"{nasty}: yes", f"{nasty}: no"]
    assert page.texts["title"] == [f"Labels of {nasty} that the model disagrees with"]
    assert not page.open


@pytest.mark.parametrize(
    ("size", "orientation", "expected"),
    [
        ((60, 80), 1, (120, 160)),
        ((400, 100), 1, (160, 40)),
        ((400, 100), 6, (40, 160)),
        ((400, 100), 3, (160, 40)),
        ((5, 5), 1, (160, 160)),
        ((2000, 2), 1, (160, 1)),
    ],
)
def test_a_thumbnail_has_the_shape_of_its_picture_upright(
    tmp_path: Path, size: tuple[int, int], orientation: int, expected: tuple[int, int]
) -> None:
    image = Image.new("RGB", size, "white")
    image.paste("black", (0, 0, size[0] // 2, size[1]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.jpg", exif=exif, quality=100)
    one = Mistake(tmp_path / "a.jpg", "a.jpg", 1, "", "a", "b", 0.1, 0.9)
    page = Page(contact_sheet([mistakes_of(KIND, one)], "val.csv", "best"))
    thumbnail = pixels_of(page.images[0])
    assert thumbnail.size == expected
    # The dark half is on the left, turned right for 3 and on top for 6.
    grey = np.asarray(thumbnail.convert("L")).astype(int)
    if orientation == 6:
        assert grey[: len(grey) // 3].mean() < 30 < 225 < grey[-len(grey) // 3 :].mean()
    elif orientation == 1 and size[0] < 1000:
        assert grey[:, : grey.shape[1] // 3].mean() < 30
    elif orientation == 3:
        assert grey[:, : grey.shape[1] // 3].mean() > 225


def test_a_picture_of_any_mode_is_drawn(tmp_path: Path) -> None:
    for mode in ("1", "L", "LA", "P", "I;16", "RGBA", "CMYK"):
        suffix = "tiff" if mode == "CMYK" else "png"
        path = tmp_path / f"a{mode.replace(';', '')}.{suffix}"
        Image.new(mode, (8, 8)).save(path)
        one = Mistake(path, path.name, 1, "", "a", "b", 0.1, 0.9)
        page = Page(contact_sheet([mistakes_of(KIND, one)], "val.csv", "best"))
        assert pixels_of(page.images[0]).mode == "RGB"


def test_of_many_the_first_are_shown_and_each_file_is_drawn_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sheets, "PICTURES", 3)
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        Image.new("RGB", (4, 4), (50 * number, 0, 0)).save(path)
    worst = [Mistake(path, path.name, 1, "", "a", "b", 0.1, 0.9) for path in paths]
    asked: list[tuple[str, int]] = []

    def progress(done: object, text: str, total: int) -> object:
        asked.append((text, total))
        return done

    found = [mistakes_of(KIND, *worst), mistakes_of(KIND, worst[0], worst[4])]
    page = Page(contact_sheet(found, "val.csv", "best", progress))  # type: ignore[arg-type]
    assert [str(image["alt"])[:5] for image in page.images] == [
        "0.png", "1.png", "2.png", "0.png", "4.png",
    ]  # fmt: skip
    reds = [np.asarray(pixels_of(image))[80, 80, 0] for image in page.images]
    assert reds == pytest.approx([0, 50, 100, 0, 200], abs=4)
    assert page.texts["p"][1].endswith("5 of 50 labels; the worst 3 here.")
    assert asked == [("drawing 4 thumbnails", 4)]


def test_a_csv_has_a_row_a_mistake_and_nothing_where_a_probability_is_not_known() -> None:
    path = Path("/data/a.png")
    found = [
        mistakes_of(KIND, Mistake(path, "a.png", 7, "", "a", "b", 0.1, 0.9)),
        mistakes_of(MARKS, Mistake(path, "a.png", 8, "x", "no", "yes", math.nan, math.nan)),
    ]
    assert [dict(zip(sheets.COLUMNS, row, strict=True)) for row in csv_rows(found)] == [
        {
            "head": "kind", "image_path": "a.png", "row": "7", "class": "", "label": "a",
            "prediction": "b", "label_probability": "0.1", "prediction_probability": "0.9",
        },
        {
            "head": "marks", "image_path": "a.png", "row": "8", "class": "x", "label": "no",
            "prediction": "yes", "label_probability": "", "prediction_probability": "",
        },
    ]  # fmt: skip


def test_how_many_are_left_out_is_said() -> None:
    many = Mistakes(KIND, (), 1322, 3977)
    said = summary(many, 1000, "in mistakes.csv")
    assert said == "the model disagrees with 1,322 of 3,977 labels; the worst 1,000 in mistakes.csv"
