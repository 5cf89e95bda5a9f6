"""What somebody else made is read, never run; and what is secret is written nowhere."""

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import torch
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.engine import make_url

from raymlc.data.demo import draw_demo
from raymlc.errors import UserError
from raymlc.labels import Head, Labels
from raymlc.model.network import build_network
from raymlc.search.place import engine_url
from raymlc.trial import TrialConfig
from tests.search.postgres import PASSWORD, Postgres, serving

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "raymlc").rglob("*.py")) + sorted((ROOT / "search_spaces").glob("*.py"))

# What makes objects of what it reads, or runs it; and where a user chose code, or it is but named.
READS_CODE = {
    "pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle",
    "pandas.read_pickle", "torch.jit.load", "torch.package", "torch.hub.load", "yaml.load",
    "yaml.unsafe_load", "eval", "exec", "runpy", "__import__",
}  # fmt: skip
ALLOWED = {
    "raymlc/search/space.py": {"exec"},  # --space
    "raymlc/entry.py": {"runpy", "runpy.run_path"},  # --trial and --enqueue, of a Python file
    "raymlc/training/checkpoint.py": {"pickle", "pickle.UnpicklingError"},  # what torch.load raises
}


def named(node: ast.expr) -> str:
    """A dotted name as it is written; empty if it is none."""
    if isinstance(node, ast.Attribute):
        before = named(node.value)
        return f"{before}.{node.attr}" if before else ""
    return node.id if isinstance(node, ast.Name) else ""


def names_in(tree: ast.Module) -> Iterator[str]:
    """Every name that a module uses, and every one that it imports from another."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Name | ast.Attribute):
            yield named(node)


def reads_code(name: str) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in READS_CODE)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_makes_objects_of_what_it_reads(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {name for name in names_in(tree) if reads_code(name)}
    assert found - ALLOWED.get(str(path.relative_to(ROOT)), set()) == set()
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        options = {option.arg: ast.unparse(option.value) for option in call.keywords}
        if named(call.func) == "torch.load":
            assert options.get("weights_only") == "True", ast.unparse(call)
        if named(call.func) == "Image.open":  # or Pillow takes kinds that start programs
            assert "formats" in options, ast.unparse(call)
        assert options.get("weights_only", "True") == "True", ast.unparse(call)
        assert options.get("allow_pickle", "False") == "False", ast.unparse(call)
        assert options.get("shell", "False") == "False", ast.unparse(call)


def test_the_law_above_sees_what_breaks_it() -> None:
    code = "import pickle\nfrom joblib import load\npickle.load(f)\neval(x)\nexec(y)\n"
    found = {name for name in names_in(ast.parse(code)) if reads_code(name)}
    assert found == {"joblib.load", "pickle", "pickle.load", "eval", "exec"}


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", ["file", "local-dir"])
def test_weights_that_hold_code_are_refused_unopened(
    tmp_path: Path, kind: str, zipped: bool
) -> None:
    trap = {"state_dict": Trap(tmp_path / "sprung")}
    folder = tmp_path / "model"
    folder.mkdir()
    torch.save(trap, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    (folder / "config.json").write_text('{"architecture": "test_efficientnet", "num_classes": 9}')
    where = {"backbone": f"local-dir:{folder}"}
    if kind == "file":
        where = {"backbone": "test_efficientnet", "weights": str(folder / "pytorch_model.bin")}
    config = TrialConfig.from_dict({"image_size": 32, **where})
    with pytest.raises(UserError):
        build_network(config, Labels((Head("color", ("blue", "red")),)))
    assert not (tmp_path / "sprung").exists()


SPACE = """
from raymlc.trial import TrialConfig
def space(trial):
    return TrialConfig(backbone="test_efficientnet", pretrained=False, image_size=32, batch_size=16,
                       epochs=1, warmup_epochs=0.0, lr=trial.suggest_float("lr", 1e-3, 1e-2))
"""


@pytest.fixture
def server() -> Iterator[Postgres]:
    with serving() as server:
        yield server


@pytest.fixture
def of_ray() -> Iterator[Path]:
    """Where Ray keeps its logs; the path of a socket may not be long."""
    folder = Path(tempfile.mkdtemp(prefix="r"))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
def test_a_databases_password_is_in_no_file_output_or_table(
    tmp_path: Path, server: Postgres, of_ray: Path
) -> None:
    draw_demo(tmp_path / "data", rows=60)
    (tmp_path / "space.py").write_text(SPACE)
    url = server.url("postgres")
    environment = os.environ | {"RAYMLC_STUDY": url, "RAY_TMPDIR": str(of_ray)}
    told = ""
    for words in (
        ["tune", "--data", "data", "--space", "space.py", "--trials", "1", "--name", "mine",
         "--verbose"],
        ["report", "runs/mine"],
    ):  # fmt: skip
        more = ["--cache", "cache"] if words[0] == "tune" else []
        done = subprocess.run(
            [sys.executable, "-m", f"raymlc.{words[0]}", *words[1:], *more],
            env=environment | {"PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        told += done.stdout + done.stderr

    secrets = {PASSWORD, quote(PASSWORD, safe=""), str(make_url(url).password)}
    files = [path for top in (tmp_path, of_ray) for path in top.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert any(of_ray in path.parents and path.suffix == ".log" for path in files)
    assert {"report.html", "events.jsonl", "sweep.json", "summary.csv"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    for secret in secrets:
        assert secret not in told
        for path in files:
            assert secret.encode() not in path.read_bytes(), path
    engine = create_engine(engine_url(make_url(url)))
    with engine.connect() as connection:
        for table in inspect(connection).get_table_names():
            rows = str(connection.execute(text(f'SELECT * FROM "{table}"')).all())
            assert not any(secret in rows for secret in secrets), table
    engine.dispose()
