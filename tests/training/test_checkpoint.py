"""Checkpoints: whole at any moment, refused in one line when broken, without a pickled class."""

import itertools
import json
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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
from raymlc.training.files import Origin
from raymlc.training.loop import fit
from raymlc.training.state import Training
from raymlc.trial import TrialConfig

CPU = torch.device("cpu")
PIXELS = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
METRICS = {"epoch": 3.0, "val/accuracy": 0.1 + 0.2, "val/loss": 1e-17, "lr": 1 / 3}
CONFUSION = {"color": {"classes": ["blue", "green"], "counts": [[3, 0], [1, 2]]}}
JSON_FILES = [
    "checkpoint.json",
    "trial.json",
    "labels.json",
    "preprocessing.json",
    "metrics.json",
    "confusion.json",
]


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
    save_checkpoint(folder, network, config, labels, PIXELS, METRICS, CONFUSION)
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
        said = loaded.network.eval()(images_BCHW)
    assert list(said) == list(labels.names)
    assert all(torch.equal(said[name], expected[name]) for name in labels.names)
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


def test_a_checkpoint_says_all_that_is_done_to_an_image(
    tmp_path: Path, network: Network, config: TrialConfig, labels: Labels
) -> None:
    cut = config.replace({"eval_crop": 0.875, "interpolation": "bicubic"})
    save_checkpoint(tmp_path / "best", network, cut, labels, PIXELS, METRICS)
    assert json.loads((tmp_path / "best" / "preprocessing.json").read_text()) == {
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.25, 0.3],
        "image_size": 32,
        "eval_crop": 0.875,
        "interpolation": "bicubic",
    }


@pytest.mark.parametrize(
    ("ema_decay", "given", "origin"),
    [(0.9, None, "ema"), (0.0, None, "raw"), (0.9, "raw", "raw"), (0.9, "average", "average")],
)
def test_a_checkpoint_says_which_weights_it_holds(
    tmp_path: Path,
    network: Network,
    config: TrialConfig,
    labels: Labels,
    ema_decay: float,
    given: Origin | None,
    origin: str,
) -> None:
    trial = config.replace({"ema_decay": ema_decay})
    save_checkpoint(tmp_path / "best", network, trial, labels, PIXELS, METRICS, {}, given)
    assert load_checkpoint(tmp_path / "best").origin == origin


def test_the_confusion_of_the_scored_epoch_stays_with_its_weights(
    tmp_path: Path, saved: Path, network: Network, config: TrialConfig, labels: Labels
) -> None:
    assert load_checkpoint(saved).confusion == CONFUSION
    save_checkpoint(tmp_path / "other", network, config, labels, PIXELS, METRICS)
    assert load_checkpoint(tmp_path / "other").confusion == {}


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


def sign_again(saved: Path) -> None:
    """What somebody does who means harm: the digest is that of whatever is there."""
    weights = (saved / "model.safetensors").read_bytes()
    spoil(saved, "checkpoint.json", lambda about: about.update(sha256=sha256(weights).hexdigest()))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights_are_refused(saved: Path, share: float, signed: bool) -> None:
    path = saved / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    if signed:
        sign_again(saved)
    assert f"checkpoint {saved} cannot be used" in refusal(saved)


@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_weights_with_a_flipped_bit_anywhere_are_refused(
    saved: Path, share: float, bit: int
) -> None:
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    content = bytearray(whole)
    content[int(len(content) * share)] ^= 1 << bit
    path.write_bytes(content)
    assert "model.safetensors is not as it was written" in refusal(saved)
    path.write_bytes(whole)


@given(place=st.integers(0, 3000), byte=st.integers(0, 255))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_false_header_of_weights_is_refused_or_harmless(
    saved: Path, place: int, byte: int
) -> None:
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
    sign_again(saved)
    with suppress(UserError):
        load_checkpoint(saved)
    path.write_bytes(whole)


def test_pickled_weights_are_refused_unopened(saved: Path, tmp_path: Path) -> None:
    torch.save(Trap(tmp_path / "sprung"), saved / "model.safetensors")
    sign_again(saved)
    assert "cannot be used" in refusal(saved)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"format": 2}, "is of format 2, but this raymlc reads format 1; upgrade raymlc"),
        ({"format": 0}, "is of format 0"),
        ({"format": "1"}, "must say its format"),
        ({"format": True}, "must say its format"),
        ({"format": None}, "must say its format"),
        ({"weights": "best"}, "raw, ema, average"),
        ({"weights": ["ema"]}, "raw, ema, average"),
        ({"sha256": 7}, "not as it was written"),
    ],
)
def test_a_checkpoint_of_another_format_is_refused(
    saved: Path, values: dict[str, Any], words: str
) -> None:
    spoil(saved, "checkpoint.json", lambda about: about.update(values))
    assert words in refusal(saved)


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


def head(index: int, **values: Any) -> Callable[[Any], None]:
    """Changes one head of labels.json."""
    return lambda labels: labels["heads"][index].update(values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            head(0, classes=["blue", "green", "pink", "red"]),
            "head 'color' has 4 classes in labels.json, but 3 in model.safetensors",
        ),
        (head(0, classes=list(map(str, range(10**6)))), "has 1000000 classes"),
        (lambda labels: labels["heads"].pop(), "2 are not its own, heads.2.1.bias for one"),
        (lambda labels: labels["heads"].append(labels["heads"][0] | {"name": "x"}), "but 0 in"),
        (lambda labels: labels["heads"].append(labels["heads"][0]), "two heads of one name"),
        (lambda labels: labels["heads"].clear(), "must hold a list of heads"),
        (lambda labels: labels.update(heads=None), "must hold a list of heads"),
        (lambda labels: labels.update(heads="abc"), "must hold a list of heads"),
        (lambda labels: labels["heads"].insert(0, 7), "TypeError"),
        (lambda labels: labels["heads"][0].pop("classes"), "'classes'"),
        (head(0, classes=["blue", 2, "red"]), "the classes of head 'color' must be texts"),
        (head(0, classes="rgb"), "the classes of head 'color' must be texts"),
        (head(0, classes={"blue": 1}), "the classes of head 'color' must be texts"),
        (head(0, classes=["red", "red", "blue"]), "one of them twice"),
        (head(0, classes=[]), "has no class"),
        (head(0, name=7), "has a name and multi_hot"),
        (head(0, multi_hot=1), "has a name and multi_hot"),
    ],
)
def test_false_labels_are_refused_before_a_network_is_built(
    saved: Path, change: Callable[[Any], None], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(saved, "labels.json", change)
    if "are not its own" not in words:
        monkeypatch.setattr(checkpoint, "build_network", None)
    assert words in refusal(saved)


def test_weights_of_another_backbone_are_refused(saved: Path) -> None:
    spoil(saved, "trial.json", lambda trial: trial.update(backbone="test_convnext"))
    said = refusal(saved)
    assert str(saved) in said
    assert re.search(r"\d+ are missing, \d+ are not its own", said)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("trial.json", {"image_size": 10**9}, "image_size must be from 8 to 4096"),
        ("trial.json", {"image_size": "32"}, "image_size must be of type int"),
        ("trial.json", {"backbone": "nothing"}, "'nothing'"),
        ("preprocessing.json", {"image_size": 10**9}, "must agree on image_size"),
        ("preprocessing.json", {"eval_crop": 0.5}, "must agree on eval_crop"),
        ("preprocessing.json", {"interpolation": None}, "must agree on interpolation"),
        ("preprocessing.json", {"mean": [0.1, 0.2]}, "mean as 3 numbers"),
        ("preprocessing.json", {"mean": "abc"}, "mean as 3 numbers"),
        ("preprocessing.json", {"mean": [0.1, 0.2, float("nan")]}, "mean as 3 numbers"),
        ("preprocessing.json", {"std": [0.1, 0.2, 0]}, "std as 3 numbers"),
        ("preprocessing.json", {"std": [0.1, 0.2, True]}, "std as 3 numbers"),
        ("metrics.json", {"val/accuracy": "high"}, "must hold named numbers"),
        ("metrics.json", {"val/accuracy": None}, "must hold named numbers"),
    ],
)
def test_values_that_no_checkpoint_has_are_refused(
    saved: Path, name: str, values: dict[str, Any], words: str
) -> None:
    spoil(saved, name, lambda content: content.update(values))
    assert words in refusal(saved)


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


@pytest.fixture
def last(tmp_path: Path, training: Training) -> Path:
    """The folder of a training that has begun."""
    training.epoch = 1
    save_last(tmp_path / "last", training, [{"epoch": 1.0}])
    return tmp_path / "last"


def state_refusal(last: Path, training: Training) -> str:
    with pytest.raises(UserError) as error:
        load_last(last, training)
    assert f"the state of the training in {last} cannot be used" in str(error.value)
    return one_line(error)


def test_nothing_that_is_loaded_can_run_code(last: Path, training: Training) -> None:
    torch.save(Trap(last / "sprung"), last / "training.pt")
    assert "remove that folder" in state_refusal(last, training)
    assert not (last / "sprung").exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_state_of_a_training_is_refused(
    last: Path, training: Training, share: float
) -> None:
    content = (last / "training.pt").read_bytes()
    (last / "training.pt").write_bytes(content[: int(len(content) * share)])
    state_refusal(last, training)


def test_a_state_of_another_trial_is_refused(
    last: Path, training: Training, labels: Labels
) -> None:
    other = Training(training.config.replace({"backbone": "test_convnext"}), labels, CPU)
    state_refusal(last, other)
    torch.save({"epoch": 1}, last / "training.pt")
    state_refusal(last, training)
    (last / "training.pt").unlink()
    assert "training.pt" in state_refusal(last, training)


def test_memory_that_does_not_suffice_is_no_broken_state(
    last: Path, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(torch.OutOfMemoryError):
        load_last(last, training)


@pytest.mark.parametrize("content", ["", "{}", "[7]", '[{"epoch": "1"}]', "[{"])
def test_a_spoilt_history_or_score_is_refused(last: Path, saved: Path, content: str) -> None:
    (last / "history.json").write_text(content)
    with pytest.raises(UserError) as error:
        load_history(last)
    assert str(last) in one_line(error)
    (saved / "metrics.json").write_text(content.strip("[]") if content == "{}" else content)
    if content == "{}":
        assert read_score(saved) == {}
        return
    with pytest.raises(UserError) as error:
        read_score(saved)
    assert str(saved) in one_line(error)


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
