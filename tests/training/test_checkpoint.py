"""Checkpoints: whole at any moment, refused in one line when broken, without a pickled class."""

import itertools
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import raymlc.training.checkpoint as checkpoint
from raymlc.data.batches import Normalization
from raymlc.data.store import ImageSplit
from raymlc.errors import UserError
from raymlc.labels import Labels
from raymlc.model.network import Network, build_network
from raymlc.training.checkpoint import (
    discard_state,
    find,
    load_checkpoint,
    load_history,
    load_last,
    read_score,
    replacing,
    save_checkpoint,
    save_last,
)
from raymlc.training.loop import Training, fit
from raymlc.trial import TrialConfig

CPU = torch.device("cpu")
PIXELS = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
METRICS = {"epoch": 3.0, "val/accuracy": 0.1 + 0.2, "val/loss": 1e-17, "lr": 1 / 3}
JSON_FILES = ["trial.json", "labels.json", "preprocessing.json", "metrics.json"]


@pytest.fixture
def network(config: TrialConfig, labels: Labels) -> Network:
    """Used, so that its batch norms have statistics of their own."""
    torch.manual_seed(1)
    network = build_network(config, labels).train()
    network(torch.randn(8, 3, 32, 32))
    return network


@pytest.fixture
def saved(tmp_path: Path, network: Network, config: TrialConfig, labels: Labels) -> Path:
    """A whole checkpoint of `network`."""
    folder = tmp_path / "best"
    save_checkpoint(folder, network, config, labels, PIXELS, METRICS)
    return folder


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_checkpoint_gives_back_the_network_and_all_that_its_use_needs(
    tmp_path: Path,
    network: Network,
    config: TrialConfig,
    labels: Labels,
    layout: torch.memory_format,
) -> None:
    images_BCHW = torch.randn(4, 3, 32, 32)
    network.eval()
    with torch.no_grad():
        expected = network(images_BCHW)
        network.to(memory_format=layout)
        save_checkpoint(tmp_path / "best", network, config, labels, PIXELS, METRICS)
        loaded = load_checkpoint(tmp_path / "best")
        given = loaded.network.eval()(images_BCHW)
    assert list(given) == list(labels.names)
    assert all(torch.equal(given[head], expected[head]) for head in labels.names)
    assert loaded.config == config
    assert loaded.labels == labels
    assert loaded.normalization == PIXELS
    assert loaded.metrics == METRICS
    assert read_score(tmp_path / "best") == METRICS


def test_head_names_and_classes_of_any_text_come_back(tmp_path: Path, config: TrialConfig) -> None:
    labels = Labels.learn(
        {"a.b/Größe\n": ["NA", "01", "1", 'x"y'], "": ["a|b"], "type": ["p", "q"]}
    )
    network = build_network(config, labels)
    save_checkpoint(tmp_path / "best", network, config, labels, PIXELS, METRICS)
    assert load_checkpoint(tmp_path / "best").labels == labels


def test_a_checkpoint_is_safetensors_and_json_alone(saved: Path, network: Network) -> None:
    names = {path.name for path in saved.iterdir()}
    assert names == {"model.safetensors", *JSON_FILES}
    weights = load_file(saved / "model.safetensors")
    assert weights.keys() == network.state_dict().keys()
    pixels = json.loads((saved / "preprocessing.json").read_text())
    assert pixels == {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "image_size": 32}


def test_a_checkpoint_is_loaded_without_the_hub_and_without_a_weights_file(
    tmp_path: Path, network: Network, config: TrialConfig, labels: Labels
) -> None:
    away = config.replace({"pretrained": True, "weights": "/nowhere/weights.pth"})
    save_checkpoint(tmp_path / "best", network, away, labels, PIXELS, METRICS)
    assert load_checkpoint(tmp_path / "best").config == away


class Killed(BaseException):
    """What a process that is killed raises nowhere: nothing may catch it."""


def dying(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Die in the middle of the file operation with this number, counted from 0."""
    numbers = itertools.count()
    rename, rmtree, mkdir = Path.rename, shutil.rmtree, Path.mkdir

    def dying_rename(self: Path, target: Path) -> Path:
        if next(numbers) == after:
            raise Killed
        return rename(self, target)

    def dying_mkdir(self: Path, *args: Any, **kwargs: Any) -> None:
        if next(numbers) == after:
            raise Killed
        mkdir(self, *args, **kwargs)

    def dying_rmtree(folder: Path, ignore_errors: bool = False) -> None:
        if next(numbers) == after:
            for path in sorted(folder.glob("*"))[:1]:
                path.unlink()  # killed half way
            raise Killed
        rmtree(folder, ignore_errors=ignore_errors)

    monkeypatch.setattr(Path, "rename", dying_rename)
    monkeypatch.setattr(Path, "mkdir", dying_mkdir)
    monkeypatch.setattr(checkpoint.shutil, "rmtree", dying_rmtree)  # type: ignore[attr-defined]


def write_version(folder: Path, version: str, die_between: bool = False) -> None:
    with replacing(folder) as filling:
        (filling / "a").write_text(version)
        if die_between:
            raise Killed
        (filling / "b").write_text(version)


def version_of(folder: Path) -> str | None:
    """The version that `find` sees, which must be whole."""
    found = find(folder)
    if found is None:
        return None
    assert {path.name for path in found.iterdir()} == {"a", "b"}
    versions = {path.read_text() for path in found.iterdir()}
    assert len(versions) == 1
    return versions.pop()


@pytest.mark.parametrize("first", range(7))
@pytest.mark.parametrize("second", range(7))
def test_a_folder_killed_twice_at_any_two_moments_is_whole(
    first: int, second: int, tmp_path: Path
) -> None:
    folder = tmp_path / "last"
    write_version(folder, "0")
    seen = "0"
    for version, after in (("1", first), ("2", second)):
        with pytest.MonkeyPatch.context() as patch:
            dying(after, patch)
            try:
                write_version(folder, version, die_between=after == 6)
                ended = True
            except Killed:
                ended = False
        now = version_of(folder)
        assert now in ({version} if ended else {seen, version})
        seen = now
    write_version(folder, "3")
    assert version_of(folder) == "3"
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_every_file_operation_of_replacing_was_one_to_die_in(tmp_path: Path) -> None:
    """Else the test above, which takes 6 to mean the block between them, would miss a moment."""
    ended = []
    for after in range(7):
        write_version(tmp_path / "last", "old")
        with pytest.MonkeyPatch.context() as patch:
            dying(after, patch)
            try:
                write_version(tmp_path / "last", "new")
                ended.append(after)
            except Killed:
                continue
    assert ended == [6]


def test_a_first_folder_killed_while_it_is_filled_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        write_version(tmp_path / "last", "1", die_between=True)
    assert find(tmp_path / "last") is None
    assert load_history(tmp_path / "last") == []
    assert read_score(tmp_path / "last") == {}


def test_a_checkpoint_is_found_where_a_kill_left_it_between_two_renames(saved: Path) -> None:
    saved.rename(saved.with_name(".best.old"))
    (saved.with_name(".best.filling")).mkdir()
    assert load_checkpoint(saved).metrics == METRICS
    assert read_score(saved) == METRICS


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        load_checkpoint(folder)
    assert type(error.value) is UserError
    return one_line(error)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    assert "model.safetensors" in refusal(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "model.safetensors" in refusal(tmp_path / "empty")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights_are_refused(saved: Path, share: float) -> None:
    path = saved / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert str(saved) in refusal(saved)


@pytest.mark.parametrize("name", ["model.safetensors", *JSON_FILES])
def test_a_checkpoint_that_lacks_a_file_is_refused(saved: Path, name: str) -> None:
    (saved / name).unlink()
    assert name in refusal(saved)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"7", b'"text"', b"\xff\xfe\x00\x80"]
)
@pytest.mark.parametrize("name", JSON_FILES)
def test_a_checkpoint_with_a_spoilt_file_is_refused(saved: Path, name: str, content: bytes) -> None:
    (saved / name).write_bytes(content)
    refusal(saved)


def spoil(saved: Path, name: str, change: Callable[[Any], None]) -> None:
    values = json.loads((saved / name).read_text())
    change(values)
    (saved / name).write_text(json.dumps(values))


def test_weights_of_other_heads_are_refused(saved: Path) -> None:
    spoil(saved, "labels.json", lambda labels: labels["heads"][0]["classes"].append("pink"))
    assert "size mismatch" in refusal(saved)


def test_weights_of_another_number_of_heads_are_refused(saved: Path) -> None:
    spoil(saved, "labels.json", lambda labels: labels["heads"].pop())
    assert str(saved) in refusal(saved)


def test_weights_of_another_backbone_are_refused(saved: Path) -> None:
    spoil(saved, "trial.json", lambda trial: trial.update(backbone="test_convnext"))
    assert str(saved) in refusal(saved)


def test_a_field_that_no_trial_has_is_refused_with_near_names(saved: Path) -> None:
    spoil(saved, "trial.json", lambda trial: trial.update(droprate=0.1))
    assert "did you mean 'drop_rate'" in refusal(saved)


def test_a_value_that_no_trial_may_have_is_refused(saved: Path) -> None:
    spoil(saved, "trial.json", lambda trial: trial.update(drop_rate=2.0))
    assert "drop_rate must be in [0, 1)" in refusal(saved)


@pytest.fixture
def training(config: TrialConfig, labels: Labels) -> Training:
    """Not yet begun, of two epochs."""
    return Training(config, labels, CPU)


def test_a_training_goes_on_from_its_folder_where_it_was(
    tmp_path: Path, training: Training, train: ImageSplit, val: ImageSplit
) -> None:
    history = [next(fit(training, train, val))]
    save_last(tmp_path / "last", training, history)
    assert load_history(tmp_path / "last") == history
    other = Training(training.config, training.labels, CPU, fetch=False)
    load_last(tmp_path / "last", other)
    assert other.epoch == 1
    assert_same_state(other.state_dict(), training.state_dict())


def assert_same_state(first: Any, second: Any) -> None:
    """Equal to the bit, however deep."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert_same_state(value, second[key])
    elif isinstance(first, list | tuple):
        for left, right in zip(first, second, strict=True):
            assert_same_state(left, right)
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    else:
        assert first == second


def test_of_a_finished_trial_only_its_history_is_kept(tmp_path: Path, training: Training) -> None:
    history = [{"epoch": 1.0, "val/accuracy": float("nan")}, {"epoch": 2.0, "val/accuracy": 0.25}]
    training.epoch = 1
    save_last(tmp_path / "last", training, history[:1])
    assert {path.name for path in (tmp_path / "last").iterdir()} == {"history.json", "training.pt"}
    training.epoch = 2
    save_last(tmp_path / "last", training, history)
    assert [path.name for path in (tmp_path / "last").iterdir()] == ["history.json"]
    assert load_history(tmp_path / "last")[1] == history[1]
    assert repr(load_history(tmp_path / "last")) == repr(history)


def test_of_a_trial_that_was_stopped_the_history_outlives_the_state(
    tmp_path: Path, training: Training
) -> None:
    training.epoch = 1
    save_last(tmp_path / "last", training, [{"epoch": 1.0}])
    discard_state(tmp_path / "last")
    discard_state(tmp_path / "last")
    discard_state(tmp_path / "never")
    assert [path.name for path in (tmp_path / "last").iterdir()] == ["history.json"]
    assert load_history(tmp_path / "last") == [{"epoch": 1.0}]


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.path,))


def test_nothing_that_is_loaded_can_run_code(tmp_path: Path, training: Training) -> None:
    training.epoch = 1
    save_last(tmp_path / "last", training, [{"epoch": 1.0}])
    torch.save(Trap(tmp_path / "sprung"), tmp_path / "last" / "training.pt")
    with pytest.raises(pickle.UnpicklingError):
        load_last(tmp_path / "last", training)
    assert not (tmp_path / "sprung").exists()


def test_the_state_of_a_training_is_loaded_with_weights_only(
    tmp_path: Path, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.epoch = 1
    save_last(tmp_path / "last", training, [{"epoch": 1.0}])
    asked = []
    load = torch.load

    def noting_load(*args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs["weights_only"])
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", noting_load)
    load_last(tmp_path / "last", training)
    assert asked == [True]
    assert not list(tmp_path.rglob("*.pkl"))
