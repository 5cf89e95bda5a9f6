"""The house: imports go down only, Ray lives in one room, and modules stay readable."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "raymlc"
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
)

# A module or a package may import from floors below its own. Rooms of one floor may import one
# another only as the natural arrows say.
FLOORS = {
    "raymlc.errors": 0,
    "raymlc.fields": 0,
    "raymlc.trial": 0,
    "raymlc.labels": 0,
    "raymlc.metric": 0,
    "raymlc.data": 1,
    "raymlc.model": 1,
    "raymlc.optim": 1,
    "raymlc.training": 2,
    "raymlc.search": 2,
    "raymlc.watch": 3,
    "raymlc.options": 3,
    "raymlc.door": 3,
    "raymlc.cluster": 4,
    "raymlc.entry": 4,
    "raymlc.begin": 4,
    "raymlc.tune": 5,
    "raymlc.train": 5,
    "raymlc.validate": 5,
    "raymlc.predict": 5,
    "raymlc.export": 5,
    "raymlc.average": 5,
    "raymlc.cache": 5,
    "raymlc.check": 5,
    "raymlc.pick": 5,
    "raymlc.report": 5,
}
ARROWS = {
    ("raymlc.fields", "raymlc.errors"),
    ("raymlc.trial", "raymlc.errors"),
    ("raymlc.trial", "raymlc.fields"),
    ("raymlc.labels", "raymlc.errors"),
    ("raymlc.metric", "raymlc.errors"),
    ("raymlc.optim", "raymlc.model"),
    ("raymlc.begin", "raymlc.entry"),
}


def room_of(module: str) -> str:
    """The entry of FLOORS that a module belongs to."""
    rooms = [room for room in FLOORS if module == room or module.startswith(room + ".")]
    assert len(rooms) == 1, f"{module} must have a floor"
    return rooms[0]


def imported(module: str) -> set[str]:
    """Every module that one imports, anywhere in its text."""
    tree = ast.parse((PACKAGE.parent / (module.replace(".", "/") + ".py")).read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names.add(str(node.module))
    return names


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module: str) -> None:
    room = room_of(module)
    for name in imported(module):
        if name.startswith("raymlc."):
            other = room_of(name)
            natural = other == room or (room, other) in ARROWS
            assert natural or FLOORS[other] < FLOORS[room], f"{module} must not import {name}"


@pytest.mark.parametrize("module", MODULES)
def test_ray_is_imported_in_the_cluster_room_alone(module: str) -> None:
    if room_of(module) != "raymlc.cluster":
        assert not [name for name in imported(module) if name.split(".")[0] == "ray"]


def test_floors_below_the_cluster_leave_ray_unimported() -> None:
    below = [module for module in MODULES if FLOORS[room_of(module)] < FLOORS["raymlc.cluster"]]
    code = f"import sys, {', '.join(below)}; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


@pytest.mark.parametrize("module", MODULES)
def test_modules_and_functions_stay_short(module: str) -> None:
    text = (PACKAGE.parent / (module.replace(".", "/") + ".py")).read_text()
    assert len(text.splitlines()) <= 330
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 75, f"{module}.{node.name}"


def test_public_things_have_docstrings() -> None:
    for module in MODULES:
        tree = ast.parse((PACKAGE.parent / (module.replace(".", "/") + ".py")).read_text())
        assert ast.get_docstring(tree), module
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{module}.{node.name}"
