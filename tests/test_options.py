"""A sweep's options are kept in its folder, and those of its data cannot change."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from raymlc.door import parse
from raymlc.errors import UserError
from raymlc.options import OF_THE_DATA, TuneOptions

NAMES = [field.name for field in dataclasses.fields(TuneOptions)]
FULL = TuneOptions(
    data=Path("/some/data"),
    space=Path("/some/space.py"),
    trials="7",
    time_budget="2h",
    epoch_budget=40,
    enqueue=(Path("/some/trial.json"), Path("/some/best")),
    warm_start=Path("/some/other"),
    finalists=3,
    study="postgresql://me@host/database",
    repeats=2,
    metric="val/loss/color",
    classes=Path("/some/all.csv"),
    heads=("color", "größe"),
    fixed=("lr=0.1", "epochs=3"),
    weights=Path("/some/weights.safetensors"),
    name="mine",
    output=Path("/some/runs"),
    resume=True,
    sampler="random",
    pruner="median",
    seed=5,
    val_fraction=0.3,
    broken_images="skip",
    allow_outside=True,
    cache=Path("/some/cache"),
    workers=2,
    trainer="torch",
    cpus_per_worker=1.5,
    gpus_per_worker=1.0,
    concurrency=3,
    trials_per_gpu="auto",
    address="auto",
    verbose=True,
    quiet=True,
)


def kept(options: TuneOptions, path: Path) -> TuneOptions:
    options.save(path)
    return TuneOptions.load(path)


def test_every_option_comes_back_from_the_file(tmp_path: Path) -> None:
    default = TuneOptions()
    assert all(getattr(FULL, name) != getattr(default, name) for name in NAMES)
    assert kept(FULL, tmp_path / "sweep.json") == FULL


def test_the_default_options_come_back_from_the_file(tmp_path: Path) -> None:
    loaded = kept(TuneOptions(), tmp_path / "sweep.json")
    assert dataclasses.replace(loaded, output=Path("runs")) == TuneOptions()


def test_the_file_is_json_that_a_person_can_read(tmp_path: Path) -> None:
    FULL.save(tmp_path / "sweep.json")
    values = json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))
    assert list(values) == NAMES
    assert values["data"] == "/some/data"
    assert values["heads"] == ["color", "größe"]


def test_paths_are_kept_as_they_hold_from_any_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    monkeypatch.chdir(here)
    options = TuneOptions(data=Path("data"), space=Path("s.py"), weights=Path("w"), cache=Path("c"))
    options.save(tmp_path / "sweep.json")
    monkeypatch.chdir(there)
    loaded = TuneOptions.load(tmp_path / "sweep.json")
    assert loaded.data == here / "data"
    assert loaded.space == here / "s.py"
    assert loaded.weights == here / "w"
    assert loaded.cache == here / "c"
    assert loaded.output == here / "runs"


def test_a_cache_below_home_stays_below_the_home_of_whoever_resumes(tmp_path: Path) -> None:
    loaded = kept(TuneOptions(cache=Path("~/cache")), tmp_path / "sweep.json")
    assert loaded.cache == Path("~/cache")
    assert kept(TuneOptions(), tmp_path / "sweep.json").cache == TuneOptions().cache


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "3", "null", "{}", '{"data": null}', '{"data": 3}', "\udcff"],
)
def test_another_file_is_refused_by_its_path(tmp_path: Path, content: str) -> None:
    path = tmp_path / "sweep.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as refused:
        TuneOptions.load(path)
    assert str(refused.value).startswith(f"{path} must hold a run's options, but: ")


def test_an_option_that_an_earlier_release_did_not_have_is_as_by_default(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    FULL.save(path)
    values = json.loads(path.read_text(encoding="utf-8"))
    del values["concurrency"]
    path.write_text(json.dumps(values))
    loaded = TuneOptions.load(path)
    assert loaded.concurrency == TuneOptions().concurrency != FULL.concurrency
    assert loaded.seed == FULL.seed


def test_an_option_of_a_later_release_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    FULL.save(path)
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(values | {"never_there": 1}))
    with pytest.raises(UserError, match="never_there"):
        TuneOptions.load(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data", Path("/other/data")),
        ("data", None),
        ("heads", ("color",)),
        ("metric", "val/accuracy"),
        ("val_fraction", 0.2),
        ("classes", Path("/other/all.csv")),
    ],
)
def test_a_resumed_sweep_keeps_its_data_heads_and_metric(name: str, value: Any) -> None:
    changed = dataclasses.replace(FULL, **{name: value})
    with pytest.raises(UserError) as refused:
        changed.check_kept(FULL)
    line = str(refused.value)
    assert line.startswith(f"a resumed run keeps its {name}, but that is {getattr(FULL, name)} ")
    assert f"and not {value}; " in line


@pytest.mark.parametrize(
    "name",
    [name for name in NAMES if name not in (*OF_THE_DATA, "study")],
)
def test_a_resumed_sweep_may_change_any_other_option(name: str) -> None:
    dataclasses.replace(FULL, **{name: getattr(TuneOptions(), name)}).check_kept(FULL)


def test_the_password_of_a_database_is_not_kept(tmp_path: Path) -> None:
    options = TuneOptions(study="postgresql://me:secret@host/database")
    saved = kept(options, tmp_path / "sweep.json")
    assert "secret" not in (tmp_path / "sweep.json").read_text()
    options.check_kept(saved)
    with pytest.raises(UserError, match="keeps its study"):
        dataclasses.replace(options, study="postgresql://me:secret@host/another").check_kept(saved)


def test_the_same_data_by_another_path_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved = kept(TuneOptions(data=Path("data")), tmp_path / "sweep.json")
    TuneOptions(data=Path("data")).check_kept(saved)
    TuneOptions(data=tmp_path / "data").check_kept(saved)
    saved.check_kept(saved)
    with pytest.raises(UserError, match="keeps its data"):
        TuneOptions(data=Path("date")).check_kept(saved)


def test_a_sweep_of_the_built_in_data_keeps_them() -> None:
    TuneOptions().check_kept(TuneOptions())
    with pytest.raises(UserError, match="keeps its data, but that is None and not /some/data"):
        TuneOptions(data=Path("/some/data")).check_kept(TuneOptions())


@pytest.mark.parametrize(
    ("words", "kept"), [([], True), (["--allow-outside"], True), (["--no-allow-outside"], False)]
)
def test_a_resumed_run_keeps_a_switch_that_may_be_said_again_or_switched_off(
    words: list[str], kept: bool
) -> None:
    options = parse(TuneOptions, "tune", words, TuneOptions(allow_outside=True))
    assert options.allow_outside is kept
