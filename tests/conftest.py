"""A small table of pictures that tell their row."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

# A machine under load is no fault of a test's.
settings.register_profile("raymlc", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("raymlc")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where processes share the files, those with slow tests go first, so that both end together.

    Needs `--no-loadscope-reorder`, or else those with the most tests go first.
    """
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


HEADER = "image_path,shape,code,marks"
# Labels that look like numbers and like missing values; an empty cell in every head; no mark at
# all; and in val.csv a class that train.csv has not.
TRAIN_CELLS = (
    "round,01,dot|bar",
    "round,1,dot",
    "flat,NA,|",
    ",None,bar",
    "flat,,dot|bar",
    "flat,01,",
)
VAL_CELLS = ("round,1,bar", "bent,01,dot|star", "flat,2,|", ",,")


@pytest.fixture
def tiny_table(tmp_path: Path) -> Path:
    """A folder with 36 pictures in train.csv and 12 in val.csv, of 10 x 8 pixels.

    Heads `shape` and `code` are single-label, `marks` is multi-hot. The red of a picture is 5 times
    its place in its CSV, the green is 0 in train.csv and 200 in val.csv.
    """
    folder = tmp_path / "table"
    (folder / "images").mkdir(parents=True)
    for name, cells, rows, green in (("train", TRAIN_CELLS, 36, 0), ("val", VAL_CELLS, 12, 200)):
        lines = [HEADER]
        for place in range(rows):
            image = f"images/{name}{place:02}.png"
            Image.new("RGB", (10, 8), (5 * place, green, 30)).save(folder / image)
            lines.append(f"{image},{cells[place % len(cells)]}")
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
