"""An ONNX file gives PyTorch's logits under the heads' names, and needs nothing beside it."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import raymlc.training.onnx as onnx_room
from raymlc.data.batches import Normalization
from raymlc.export import main
from raymlc.labels import Labels
from raymlc.model.network import build_network
from raymlc.training.checkpoint import load_checkpoint, save_checkpoint
from raymlc.training.onnx import TOLERANCE
from raymlc.training.prediction import Predictor, load_predictor
from raymlc.trial import TrialConfig

CPU = torch.device("cpu")
HEADS = {"color": ("red", "NA", "blue"), "side": ("top", "bottom"), "marks": ("bar|dot",)}


def checkpoint(
    folder: Path, changes: dict[str, Any] | None = None, heads: dict[str, Any] = HEADS
) -> Path:
    """A checkpoint with random weights whose logits are far from 0."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = TrialConfig(
        backbone="test_efficientnet", pretrained=False, image_size=32, batch_size=8
    ).replace(changes or {})
    labels = Labels.learn(heads)
    network = build_network(config, labels).train()
    network(torch.randn(16, 3, config.image_size, config.image_size))
    with torch.no_grad():
        for layers in network.heads:
            layers[1].weight.mul_(500)  # type: ignore[index]
    pixels = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    save_checkpoint(folder, network, config, labels, pixels, {})
    return folder


def export(folder: Path, output: Path, code: int = 0) -> onnxruntime.InferenceSession | None:
    assert main([str(folder), "--output", str(output)]) == code
    return (
        None if code else onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
    )


def run(session: Any, pixels_BCHW: torch.Tensor) -> dict[str, NDArray[np.float32]]:
    names = [output.name for output in session.get_outputs()]
    values = session.run(None, {"images": pixels_BCHW.float().numpy()})
    return dict(zip(names, values, strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"backbone": "test_vit"},
        {"backbone": "test_convnext", "eval_crop": 0.7, "interpolation": "bilinear"},
        {"backbone": "test_resnet", "eval_crop": 0.9, "interpolation": "bicubic"},
        {"precision": "fp16", "channels_last": False, "image_size": 40},
    ],
)
def test_the_file_gives_pytorchs_logits_for_batches_of_any_size(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = checkpoint(tmp_path / "best", changes)
    session = export(folder, tmp_path / "model.onnx")
    loaded = load_checkpoint(folder)
    predictor = Predictor(loaded, CPU)
    size = loaded.config.image_size
    for batch in (1, 2, 5):
        pixels_BCHW = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
        given = run(session, pixels_BCHW)
        expected = predictor.logits(pixels_BCHW)
        assert list(given) == list(expected) == list(HEADS)
        for head, logits_BK in expected.items():
            assert logits_BK.std() > 0.1 or batch == 1
            least = TOLERANCE * max(1.0, float(logits_BK.abs().max()))
            np.testing.assert_allclose(given[head], logits_BK.numpy(), rtol=0, atol=least)


def test_labels_are_predicted_from_the_file_alone(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "best", {"eval_crop": 0.8})
    session = export(folder, tmp_path / "model.onnx")
    assert session is not None
    noise = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
    image = Image.fromarray(noise)
    (expected,) = load_predictor(folder)(image)

    metadata = session.get_modelmeta().custom_metadata_map
    size = json.loads(metadata["preprocessing"])["image_size"]
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape) == (
        "images",
        "tensor(float)",
        ["batch", 3, 32, 32],
    )
    pixels_HWC = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=2.0))
    images_1CHW = pixels_HWC.astype(np.float32).transpose(2, 0, 1)[None]
    heads = json.loads(metadata["heads"])
    assert [head["name"] for head in heads] == list(HEADS)
    for head in heads:
        (logits_K,) = session.run([head["output"]], {"images": images_1CHW})[0]
        if head["probabilities"] == "softmax":
            shares = np.exp(logits_K) / np.exp(logits_K).sum()
            said = head["classes"][int(shares.argmax())]
        else:
            shares = 1 / (1 + np.exp(-logits_K))
            there = [name for name, p in zip(head["classes"], shares, strict=True) if p > 0.5]
            said = "|".join(there) or "|"
        assert said == expected[head["name"]].label
        assert list(expected[head["name"]].probabilities) == head["classes"]
        assert list(expected[head["name"]].probabilities.values()) == pytest.approx(
            shares.tolist(), abs=1e-5
        )


def test_the_metadata_has_labels_preprocessing_and_trial(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "best", {"precision": "bf16", "lr": 0.25})
    session = export(folder, tmp_path / "model.onnx")
    assert session is not None
    metadata = session.get_modelmeta().custom_metadata_map
    values = {name: json.loads(text) for name, text in metadata.items()}
    assert values.keys() == {"heads", "labels", "preprocessing", "trial", "raymlc"}
    loaded = load_checkpoint(folder)
    assert Labels.from_dict(values["labels"]) == loaded.labels
    assert TrialConfig.from_dict(values["trial"]) == loaded.config
    assert values["preprocessing"] == json.loads((folder / "preprocessing.json").read_text())
    assert isinstance(values["raymlc"], str)


def test_heads_of_any_name_have_an_output_of_it_or_nearly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["images", "a.b/Größe [x]\n", "1", "out0", "mean_C11", "", "batch", "color", "color_"]
    heads = {name: ("a", "b", *"cdefghij"[: place + 1]) for place, name in enumerate(names)}
    folder = checkpoint(tmp_path / "best", heads=heads)
    session = export(folder, tmp_path / "model.onnx")
    assert session is not None
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"))
    outputs = [output.name for output in session.get_outputs()]
    told = json.loads(session.get_modelmeta().custom_metadata_map["heads"])
    assert [head["output"] for head in told] == outputs
    assert [head["name"] for head in told] == names
    renamed = {name: out for name, out in zip(names, outputs, strict=True) if name != out}
    assert renamed == {"images": "images_", "mean_C11": "mean_C11_", "": "_"}
    said = capsys.readouterr().out
    assert "output images_ of head 'images', whose name the file has already," in said
    pixels_BCHW = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    given = run(session, pixels_BCHW)
    expected = load_predictor(folder).logits(pixels_BCHW)
    for name, output in zip(names, outputs, strict=True):
        assert given[output].shape == (2, len(heads[name]))
        np.testing.assert_allclose(given[output], expected[name].numpy(), rtol=1e-4, atol=1e-4)


def test_the_command_says_what_it_checked_and_nothing_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint(tmp_path / "best", {"backbone": "test_vit"})
    export(folder, tmp_path / "model.onnx")
    told = capfd.readouterr()
    assert told.err == ""
    lines = told.out.splitlines()
    assert len(lines) == 4
    for line, head in zip(lines, HEADS, strict=False):
        assert line.startswith(f"output {head}: logits within ")
        assert 0 < float(line.split()[4]) < 1e-2
    assert lines[3].startswith(f"{tmp_path / 'model.onnx'}: ")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["model.onnx"]


def refused(arguments: list[Any], capfd: pytest.CaptureFixture[str]) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    told = capfd.readouterr()
    assert told.out == ""
    (line,) = told.err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("change", [0.01, float("nan")])
def test_logits_that_differ_leave_no_file(
    tmp_path: Path,
    change: float,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = checkpoint(tmp_path / "best")
    logits = Predictor.logits

    def other(self: Predictor, pixels_NCHW: torch.Tensor) -> dict[str, torch.Tensor]:
        said = logits(self, pixels_NCHW)
        if len(pixels_NCHW) == 3:
            said["side"][2, 1] += change
        return said

    monkeypatch.setattr(Predictor, "logits", other)
    (tmp_path / "model.onnx").write_text("the one before")
    text = refused([folder, "--output", tmp_path / "model.onnx", "--overwrite"], capfd)
    assert "those of output 'side' for 3 images differ by" in text
    assert (tmp_path / "model.onnx").read_text() == "the one before"
    refused([folder, "--output", tmp_path / "new.onnx"], capfd)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "model.onnx"]


def test_a_network_that_torch_cannot_export_is_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("operator 'x'\nis not there")

    folder = checkpoint(tmp_path / "best")
    monkeypatch.setattr(torch.onnx, "export", fails)
    text = refused([folder, "--output", tmp_path / "model.onnx"], capfd)
    assert "'test_efficientnet' must be one that torch can export" in text
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_weights_that_no_single_file_holds_are_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint(tmp_path / "best")
    monkeypatch.setattr(onnx_room, "_LARGEST", 10**5)
    assert "up to 2 GiB" in refused([folder, "--output", tmp_path / "model.onnx"], capfd)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_said_with_its_way_out(
    tmp_path: Path,
    package: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find_spec(name)
    )
    text = refused(["NOWHERE", "--output", tmp_path / "model.onnx"], capfd)
    assert text.endswith(f"needs {package}, which is not installed: pip install 'raymlc[onnx]'")


def test_wrong_words_are_refused_in_a_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there.onnx").write_text("mine")
    folder = checkpoint(tmp_path / "best")
    for arguments, words in (
        ([folder, "--output", tmp_path / "there.onnx"], "there.onnx is there"),
        ([folder, "--output", tmp_path / "none" / "x.onnx"], "must be in a folder"),
        ([folder, "--output", tmp_path, "--overwrite"], "is a folder"),
        ([tmp_path / "none", "--output", tmp_path / "x.onnx"], "holds model.safetensors"),
    ):
        assert words in refused(arguments, capfd)
    assert (tmp_path / "there.onnx").read_text() == "mine"
