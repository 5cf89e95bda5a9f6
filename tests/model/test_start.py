"""A trial that starts from a checkpoint: what it keeps, what it draws anew, what it says."""

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from raymlc.errors import UserError
from raymlc.labels import Head, Labels
from raymlc.model.network import Network, build_network
from raymlc.model.start import kept_heads, start_lines
from raymlc.trial import TrialConfig

SMALL = TrialConfig(backbone="test_efficientnet", pretrained=False, image_size=32)
COLOR = Head("color", ("blue", "green", "red"))
SHAPE = Head("shape", ("flat", "round"))
TAGS = Head("tags", ("a", "b", "c"), multi_hot=True)
OLD = Labels((COLOR, SHAPE, TAGS))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No weights from the hub, nor from what this machine fetched before."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def trained(folder: Path, config: TrialConfig = SMALL, labels: Labels = OLD) -> Network:
    """A network whose every weight has moved, and its checkpoint in `folder`."""
    torch.manual_seed(7)
    network = build_network(config, labels, fetch=False)
    for tensor in network.state_dict().values():
        tensor += torch.rand(tensor.shape) if tensor.is_floating_point() else 3
    folder.mkdir()
    save_file(network.state_dict(), folder / "model.safetensors")
    text = json.dumps(labels.to_dict())
    (folder / "labels.json").write_text(text, encoding="utf-8")
    return network.eval()


def started(folder: Path, labels: Labels, **values: object) -> Network:
    torch.manual_seed(1)
    return build_network(SMALL.replace({"weights": str(folder), **values}), labels)


def drawn(labels: Labels) -> Network:
    """The network of the same seed without a checkpoint."""
    torch.manual_seed(1)
    return build_network(SMALL, labels)


def states_equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    assert list(first) == list(second)
    return all(
        first[name].shape == second[name].shape and torch.equal(first[name], second[name])
        for name in first
    )


def head_of(network: Network, name: str) -> torch.nn.Module:
    return network.heads[network.labels.names.index(name)]


def refusal(config: TrialConfig, labels: Labels = OLD) -> str:
    """The one line in which such a start is refused."""
    with pytest.raises(UserError) as refused:
        build_network(config, labels)
    text = str(refused.value)
    assert "\n" not in text
    assert len(text) < 700
    return text


@pytest.mark.parametrize("pretrained", [False, True])
def test_the_same_heads_start_as_the_whole_network_of_the_checkpoint(
    pretrained: bool, tmp_path: Path
) -> None:
    old = trained(tmp_path / "best")
    new = started(tmp_path / "best", OLD, pretrained=pretrained)
    assert states_equal(new, old)
    assert all(part.training for part in new.modules())


def test_one_head_added_and_one_changed_start_anew_beside_those_kept_in_another_order(
    tmp_path: Path,
) -> None:
    """The test of bug 16 of 2021."""
    old = trained(tmp_path / "best")
    changed = Head("shape", ("bent", "flat", "round"))
    added = Head("size", ("large", "small"))
    labels = Labels((TAGS, added, COLOR, changed))
    new, fresh = started(tmp_path / "best", labels), drawn(labels)
    assert states_equal(new.backbone, old.backbone)
    assert not states_equal(fresh.backbone, old.backbone)
    for name in ("tags", "color"):
        assert states_equal(head_of(new, name), head_of(old, name))
    for name in ("size", "shape"):
        assert states_equal(head_of(new, name), head_of(fresh, name))
    images_BCHW = torch.randn(2, 3, 32, 32)
    logits, before = new.eval()(images_BCHW), old(images_BCHW)
    assert torch.equal(logits["tags"], before["tags"])
    assert torch.equal(logits["color"], before["color"])
    assert start_lines(str(tmp_path / "best"), labels) == [
        f"from checkpoint {tmp_path / 'best'}: kept heads: tags, color; new heads: size, shape"
    ]


@pytest.mark.parametrize(
    ("head", "kept"),
    [
        (COLOR, True),
        (Head("color", ("blue", "green", "pink")), False),
        (Head("color", ("green", "blue", "red")), False),
        (Head("color", ("blue", "green")), False),
        (Head("color", ("blue", "green", "red"), multi_hot=True), False),
        (Head("Color", ("blue", "green", "red")), False),
        (Head("colour", ("blue", "green", "red")), False),
    ],
)
def test_a_head_is_kept_if_its_name_kind_and_classes_in_order_are_the_same(
    head: Head, kept: bool, tmp_path: Path
) -> None:
    old = trained(tmp_path / "best")
    labels = Labels((head,))
    assert kept_heads(tmp_path / "best", labels) == ((head.name,) if kept else ())
    expected = head_of(old, "color") if kept else drawn(labels).heads[0]
    assert states_equal(started(tmp_path / "best", labels).heads[0], expected)


def test_each_of_many_heads_finds_its_own_weights(tmp_path: Path) -> None:
    heads = tuple(Head(f"head {place}", ("no", "yes")) for place in range(12))
    old = trained(tmp_path / "best", labels=Labels(heads))
    new = started(tmp_path / "best", Labels(heads[::-1]))
    for head in heads:
        assert states_equal(head_of(new, head.name), head_of(old, head.name))


@pytest.mark.parametrize("name", ["type", "a.b", "heads", "a/b", "Farbe (größte)"])
def test_a_head_of_any_name_is_kept(name: str, tmp_path: Path) -> None:
    labels = Labels((SHAPE, Head(name, ("no", "yes"))))
    old = trained(tmp_path / "best", labels=labels)
    assert states_equal(head_of(started(tmp_path / "best", labels), name), head_of(old, name))


def test_a_backbone_of_any_image_size_goes_on_at_another(tmp_path: Path) -> None:
    old = trained(tmp_path / "best")
    new = started(tmp_path / "best", OLD, image_size=48, drop_rate=0.5, drop_path_rate=0.1)
    assert states_equal(new.backbone, old.backbone)


@pytest.mark.parametrize("other", ["test_resnet", "test_convnext", "test_efficientnet_gn"])
def test_the_checkpoint_of_another_backbone_is_refused(other: str, tmp_path: Path) -> None:
    trained(tmp_path / "best")
    config = SMALL.replace({"backbone": other, "weights": str(tmp_path / "best")})
    line = refusal(config)
    assert line.startswith("weights must be a checkpoint of the trial's own backbone, but ")
    assert f"{tmp_path / 'best'} could not be loaded: " in line
    assert "take that checkpoint's backbone" in line


def test_a_checkpoint_of_another_image_size_is_refused_where_weights_depend_on_it(
    tmp_path: Path,
) -> None:
    config = SMALL.replace({"backbone": "test_vit"})
    trained(tmp_path / "best", config)
    config = config.replace({"weights": str(tmp_path / "best")})
    build_network(config, OLD)
    line = refusal(config.replace({"image_size": 48}))
    assert "pos_embed" in line
    assert "(and image_size, where its weights depend on it)" in line


@pytest.mark.parametrize(
    ("labels", "weights", "said"),
    [
        (None, None, "holds no labels.json of one"),
        ("", None, "holds no labels.json of one"),
        ("[]", None, "holds no labels.json of one"),
        ('{"heads": [{"name": "color"}]}', None, "holds no labels.json of one"),
        ("whole", None, "could not be loaded: FileNotFoundError"),
        ("whole", b"", "could not be loaded: SafetensorError"),
        ("whole", b"not weights at all", "could not be loaded: SafetensorError"),
    ],
)
def test_a_folder_that_holds_no_whole_checkpoint_is_refused(
    labels: str | None, weights: bytes | None, said: str, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    if labels is not None:
        text = json.dumps(OLD.to_dict()) if labels == "whole" else labels
        (folder / "labels.json").write_text(text, encoding="utf-8")
    if weights is not None:
        (folder / "model.safetensors").write_bytes(weights)
    line = refusal(SMALL.replace({"weights": str(folder)}))
    assert f"{folder} " in line
    assert said in line
    if labels != "whole":
        with pytest.raises(UserError, match=r"holds no labels\.json of one"):
            start_lines(str(folder), OLD)


def test_labels_of_heads_that_the_weights_lack_are_refused(tmp_path: Path) -> None:
    trained(tmp_path / "best", labels=Labels((COLOR,)))
    text = json.dumps(OLD.to_dict())
    (tmp_path / "best" / "labels.json").write_text(text, encoding="utf-8")
    assert "Missing key" in refusal(SMALL.replace({"weights": str(tmp_path / "best")}))


@pytest.mark.parametrize(
    ("heads", "said"),
    [
        ((COLOR, TAGS), "kept heads: color, tags; new heads: none"),
        ((Head("size", ("large", "small")),), "kept heads: none; new heads: size"),
        ((SHAPE, Head("size", ("l", "s"))), "kept heads: shape; new heads: size"),
    ],
)
def test_a_start_says_in_a_line_which_heads_are_kept_and_which_are_new(
    heads: tuple[Head, ...], said: str, tmp_path: Path
) -> None:
    trained(tmp_path / "best")
    folder = str(tmp_path / "best")
    assert start_lines(folder, Labels(heads)) == [f"from checkpoint {folder}: {said}"]


def test_a_start_from_elsewhere_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"")
    for weights in ("", str(tmp_path / "w.safetensors"), str(tmp_path / "not there")):
        assert start_lines(weights, OLD) == []


def test_a_network_that_loads_a_checkpoint_of_its_own_afterwards_reads_no_other(
    tmp_path: Path,
) -> None:
    (tmp_path / "empty").mkdir()
    config = SMALL.replace({"weights": str(tmp_path / "empty")})
    assert isinstance(build_network(config, OLD, fetch=False), Network)
