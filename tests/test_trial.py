"""A trial is a value that states its laws, and its settings are read from text."""

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymlc.errors import UserError, did_you_mean
from raymlc.trial import FIELDS, TrialConfig, check_field, parse_assignment

DEFAULTS = TrialConfig().to_dict()
FLOATS = [name for name, value in DEFAULTS.items() if type(value) is float]
NUMBERS = [name for name, value in DEFAULTS.items() if type(value) in (int, float)]
TEXTS = ["backbone", "weights", "optimizer"]

# For each law the values on either side of its ends: refused ones, then allowed ones.
ENDS: dict[str, tuple[list[Any], list[Any]]] = {
    "backbone": ([""], ["resnet18.a1_in1k"]),
    "image_size": ([7, 4097], [8, 4096]),
    "drop_rate": ([-0.01, 1.0], [0.0, 0.99]),
    "drop_path_rate": ([-0.01, 1.0], [0.0, 0.99]),
    "lr": ([0.0, -1e-3], [1e-12, 10.0]),
    "head_lr_scale": ([0.0], [1e-3, 100.0]),
    "weight_decay": ([-1e-9], [0.0, 5.0]),
    "beta1": ([-0.1, 1.0], [0.0, 0.99]),
    "beta2": ([-0.1, 1.0], [0.0, 0.9999]),
    "momentum": ([-0.1, 1.0], [0.0, 0.99]),
    "eps": ([0.0], [1e-16, 1.0]),
    "clip_grad": ([-1.0], [0.0, 5.0]),
    "warmup_epochs": ([-0.1, 10.0, 11.0], [0.0, 9.99]),
    "min_lr_ratio": ([-0.01, 1.01], [0.0, 1.0]),
    "epochs": ([0, -3], [1, 1000]),
    "batch_size": ([1, 0], [2, 8192]),
    "ema_decay": ([-0.1, 1.0], [0.0, 0.9999]),
    "smoothing": ([-0.1, 1.0], [0.0, 0.9]),
    "crop_min_area": ([0.0, 1.01], [0.01, 1.0]),
    "hflip_prob": ([-0.1, 1.01], [0.0, 1.0]),
    "randaug_ops": ([-1, 9], [0, 8]),
    "randaug_magnitude": ([-1, 31], [0, 30]),
    "erasing_prob": ([-0.1, 1.01], [0.0, 1.0]),
    "seed": ([-1, 2**31], [0, 2**31 - 1]),
}


def pairs(side: int) -> list[tuple[str, Any]]:
    return [(name, value) for name, ends in ENDS.items() for value in ends[side]]


def refusal(**values: Any) -> str:
    """The one line in which a trial of these values is refused."""
    with pytest.raises(UserError) as refused:
        TrialConfig(**values)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(("name", "value"), pairs(0))
def test_a_value_beyond_its_law_is_refused_by_name_and_value(name: str, value: Any) -> None:
    line = refusal(**{name: value})
    assert line.startswith(f"{name} must be ")
    assert str(value) in line


@pytest.mark.parametrize(("name", "value"), pairs(1))
def test_the_ends_of_each_law_are_allowed(name: str, value: Any) -> None:
    assert getattr(TrialConfig(**{"warmup_epochs": 0.0, name: value}), name) == value


def test_every_number_has_a_law() -> None:
    assert set(NUMBERS) <= set(ENDS)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", FLOATS)
def test_what_is_not_a_finite_number_is_refused_everywhere(name: str, value: float) -> None:
    line = refusal(**{name: value})
    assert line.startswith(f"{name} must be ")
    assert str(value) in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", "0.1"),
        ("lr", True),
        ("lr", None),
        ("epochs", 1.0),
        ("epochs", True),
        ("epochs", "3"),
        ("gc", 1),
        ("gc", "true"),
        ("backbone", None),
        ("weights", 3),
    ],
)
def test_a_value_of_another_type_is_refused_by_name_and_value(name: str, value: Any) -> None:
    type_name = type(DEFAULTS[name]).__name__
    assert refusal(**{name: value}) == f"{name} must be of type {type_name}, but is {value!r}"


def test_a_whole_number_is_widened_where_a_fraction_is_asked() -> None:
    config = TrialConfig(lr=1, weight_decay=0)
    assert (config.lr, config.weight_decay) == (1.0, 0.0)
    assert {type(config.lr), type(config.weight_decay)} == {float}


@pytest.mark.parametrize(
    ("name", "value", "way_out"),
    [
        ("schedule", "cosin", "did you mean 'cosine'?"),
        ("schedule", "step", "choose from cosine, constant"),
        ("precision", "bf-16", "did you mean 'bf16'"),
        ("precision", "double", "choose from auto, fp32, bf16, fp16"),
    ],
)
def test_a_misspelt_choice_is_refused_with_the_names_there_are(
    name: str, value: str, way_out: str
) -> None:
    line = refusal(**{name: value})
    assert line.startswith(f"{name} must be one of its names, but is {value!r}; ")
    assert way_out in line


def test_a_warm_up_as_long_as_the_training_is_refused_with_both_numbers() -> None:
    assert "less than epochs, but they are 3.0 and 3" in refusal(epochs=3, warmup_epochs=3)


def test_gradient_centralization_is_refused_of_another_optimizer() -> None:
    assert "but optimizer is 'sgd'; set gc=False or optimizer='adamp'" in refusal(
        gc=True, optimizer="sgd"
    )
    assert TrialConfig(gc=True).gc
    assert not TrialConfig(optimizer="sgd").gc


def test_a_trial_does_not_change_and_equal_trials_are_one_key() -> None:
    config = TrialConfig(lr=0.1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.lr = 0.2  # type: ignore[misc]
    assert len({config, TrialConfig(lr=0.1), TrialConfig(lr=0.2)}) == 2


def test_replacing_fields_keeps_the_others_and_the_laws() -> None:
    config = TrialConfig(lr=0.1, epochs=7)
    changed = config.replace({"lr": 0.2})
    assert (changed.lr, changed.epochs, config.lr) == (0.2, 7, 0.1)
    with pytest.raises(UserError, match="lr must be above 0, but is -1"):
        config.replace({"lr": -1.0})


@st.composite
def trials(draw: st.DrawFn) -> TrialConfig:
    """Any trial that the laws allow."""
    values: dict[str, Any] = {}
    for name in NUMBERS:
        low, high = ENDS[name][1]
        whole = type(DEFAULTS[name]) is int
        values[name] = draw(st.integers(low, high) if whole else st.floats(low, high))
    values["warmup_epochs"] = draw(st.floats(0, values["epochs"], exclude_max=True))
    for name in TEXTS:
        values[name] = draw(st.text(min_size=1))
    for name in ("pretrained", "channels_last", "gc_conv_only"):
        values[name] = draw(st.booleans())
    values["gc"] = values["optimizer"] == "adamp" and draw(st.booleans())
    values["schedule"] = draw(st.sampled_from(["cosine", "constant"]))
    values["precision"] = draw(st.sampled_from(["auto", "fp32", "bf16", "fp16"]))
    assert set(values) == set(FIELDS)
    return TrialConfig(**values)


@given(trials())
def test_a_trial_comes_back_from_json_as_it_was(config: TrialConfig) -> None:
    assert TrialConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_json_names_every_field_of_a_trial_and_no_other() -> None:
    assert tuple(TrialConfig().to_dict()) == FIELDS
    assert TrialConfig.from_dict({}) == TrialConfig()


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("lrr", "did you mean 'lr'"),
        ("drop_rates", "did you mean 'drop_rate'"),
        ("droppath_rate", "did you mean 'drop_path_rate'"),
        ("batchsize", "did you mean 'batch_size'"),
        ("LR", "the fields are backbone, pretrained, "),
        ("zzz", "the fields are backbone, pretrained, "),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_ones(name: str, way_out: str) -> None:
    for attempt in (
        lambda: check_field(name),
        lambda: TrialConfig.from_dict({"lr": 0.1, name: 1}),
        lambda: TrialConfig().replace({name: 1}),
        lambda: parse_assignment(f"{name}=1"),
    ):
        with pytest.raises(UserError) as refused:
            attempt()
        assert str(refused.value).startswith(f"{name!r} is not a field of TrialConfig; ")
        assert way_out in str(refused.value)


def test_names_that_are_near_come_before_the_other_way_out() -> None:
    assert did_you_mean("colour", ["color", "shape"], "see --help") == "did you mean 'color'?"
    assert did_you_mean("ab1", ["ab2", "ab3"], "") == "did you mean 'ab3' or 'ab2'?"
    assert did_you_mean("weight", ["color", "shape"], "see --help") == "see --help"
    assert did_you_mean("weight", [], "see --help") == "see --help"


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("lr=0.01", "lr", 0.01),
        ("lr=1e-3", "lr", 0.001),
        ("lr=1", "lr", 1.0),
        ("lr= 0.5 ", "lr", 0.5),
        ("epochs=5", "epochs", 5),
        ("gc=true", "gc", True),
        ("gc=False", "gc", False),
        ("gc=TRUE", "gc", True),
        ("schedule=constant", "schedule", "constant"),
        ("backbone=123", "backbone", "123"),
        ("backbone=true", "backbone", "true"),
        ("weights=", "weights", ""),
        ("weights=a=b c.safetensors", "weights", "a=b c.safetensors"),
    ],
)
def test_a_setting_is_read_as_its_fields_type(text: str, name: str, value: Any) -> None:
    read = parse_assignment(text)
    assert read == (name, value)
    assert type(read[1]) is type(value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("lr", "a setting is written field=value, but this one is 'lr'"),
        ("", "a setting is written field=value, but this one is ''"),
        ("=1", "'' is not a field"),
        ("lr =1", "'lr ' is not a field of TrialConfig; did you mean 'lr'"),
        ("lr=", "lr must be of type float, but is ''"),
        ("lr=fast", "lr must be of type float, but is 'fast'"),
        ("lr=NaN", "lr must be of type float, but is 'NaN'"),
        ("lr=Infinity", "lr must be of type float, but is 'Infinity'"),
        ('lr="0.1"', "lr must be of type float, but is '0.1'"),
        ("lr=[1]", "lr must be of type float, but is [1]"),
        ("lr=null", "lr must be of type float, but is None"),
        ("epochs=1.5", "epochs must be of type int, but is 1.5"),
        ("epochs=true", "epochs must be of type int, but is True"),
        ("gc=1", "gc must be of type bool, but is 1"),
        ("gc=yes", "gc must be of type bool, but is 'yes'"),
        ("schedule=Cosine", "schedule must be one of its names, but is 'Cosine'; did you mean"),
    ],
)
def test_a_setting_that_cannot_be_read_is_refused_with_what_it_says(text: str, line: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_assignment(text)
    assert str(refused.value).startswith(line)


@given(trials())
def test_every_field_of_a_trial_comes_back_from_its_setting(config: TrialConfig) -> None:
    for name, value in config.to_dict().items():
        text = value if isinstance(value, str) else json.dumps(value)
        assert parse_assignment(f"{name}={text}") == (name, value)


@given(st.sampled_from(["", *(f"{name}=" for name in FIELDS)]), st.text())
def test_any_text_is_a_setting_of_its_fields_type_or_refused(start: str, text: str) -> None:
    try:
        name, value = parse_assignment(start + text)
    except UserError:
        return
    assert (start + text).startswith(f"{name}=")
    assert type(value) is type(DEFAULTS[name])
