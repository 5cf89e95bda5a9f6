"""What an installation has: a command for each module, types, search spaces, the licence."""

import importlib
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.test_commands import COMMANDS

ROOT = Path(__file__).parents[1]


def test_every_command_is_installed_under_a_name_of_its_own() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {f"raymlc-{name}": f"raymlc.{name}:main" for name in COMMANDS}
    for target in scripts.values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel and a source distribution of this checkout."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(folder)],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_a_wheel_carries_types_search_spaces_and_the_licence(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        said = archive.read(metadata).decode()
    spaces = {f"raymlc/search_spaces/{path.name}" for path in ROOT.glob("search_spaces/*.py")}
    package = {
        str(path.relative_to(ROOT))
        for path in ROOT.glob("raymlc/**/*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert spaces | {"raymlc/py.typed"} <= set(names)
    assert set(names) - {name for name in names if ".dist-info/" in name} == spaces | package
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "License-Expression: Apache-2.0" in said


def test_the_source_distribution_holds_what_is_needed_to_test_it(built: Path) -> None:
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    files = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "cluster.yaml")
    assert {*files, "tests/test_packaging.py", "search_spaces/default.py", ".ci/run"} <= names
    assert not any(name.startswith((".venv", "runs/", "dist/")) for name in names)
