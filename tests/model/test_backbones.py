"""The names of timm's models are known exactly, without importing timm."""

import json
import subprocess
import sys

import pytest
import timm
from timm.models import _registry

from raymlc.errors import UserError
from raymlc.model.backbones import check_backbone_name, unknown_backbone

# Says how long a process takes to refuse each name, what it says, and what it imported for that.
TIMED = """
import json, sys, time
from raymlc.errors import UserError
from raymlc.model.backbones import check_backbone_name
lines, began = [], time.process_time()
for name in sys.argv[1:]:
    try:
        check_backbone_name(name)
        lines.append(None)
    except UserError as refused:
        lines.append(str(refused))
seconds = time.process_time() - began
print(json.dumps([seconds, lines, [name for name in ("timm", "torch") if name in sys.modules]]))
"""


def is_let_through(name: str) -> bool:
    try:
        check_backbone_name(name)
    except UserError:
        return False
    return True


def test_every_model_of_timm_is_let_through_with_and_without_its_tags() -> None:
    names = timm.list_models() + timm.list_pretrained()
    assert len(names) > 2000
    assert [name for name in names if not is_let_through(name)] == []


def test_every_name_of_an_earlier_release_is_let_through() -> None:
    names = list(_registry._deprecated_models)
    assert len(names) > 100
    assert [name for name in names if not is_let_through(name)] == []


@pytest.mark.parametrize(
    "name", ["hf-hub:someone/some_model", "hf_hub:someone/some_model", "local-dir:/some/where"]
)
def test_a_name_that_says_where_the_model_lies_is_let_through(name: str) -> None:
    check_backbone_name(name)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("efficentnet_b0", "efficientnet_b0"),
        ("efficientnet-b0", "efficientnet_b0"),
        ("EfficientNet_b0", "efficientnet_b0"),
        ("resnet_50", "resnet50"),
        ("resnet51", "resnet50"),
        ("mobilenet_v3_large_100", "mobilenetv3_large_100"),
        ("efficentnet_b0.ra_in1k", "efficientnet_b0"),
    ],
)
def test_a_misspelt_name_is_refused_with_the_nearest_ones(name: str, near: str) -> None:
    with pytest.raises(UserError) as refused:
        check_backbone_name(name)
    line = str(refused.value)
    assert line.startswith(f"backbone must be a model of timm, but {name!r} is not; did you mean ")
    assert repr(near) in line


@pytest.mark.parametrize("name", ["zzzz", "", "license", "first_conv", "_cfg", "register_model"])
def test_a_word_of_timms_source_is_no_model(name: str) -> None:
    assert not timm.is_model(name)
    assert not is_let_through(name)


def test_a_name_unlike_any_other_is_refused_with_where_to_find_them_all() -> None:
    assert unknown_backbone("zzzz", ["resnet50", "vgg11"]) == (
        "backbone must be a model of timm, but 'zzzz' is not; timm.list_models() names them all"
    )


def test_a_typo_is_refused_within_a_second_without_importing_timm() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TIMED, "efficentnet_b0", "resnet50", "vitt_base"],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, lines, imported = json.loads(done.stdout)
    assert [line is None for line in lines] == [False, True, False]
    assert imported == []
    assert seconds < 1  # of the processor, whatever else the machine does
