"""A trial is a value that states its laws, and its settings are read from text."""

import copy
import dataclasses
import itertools
import json
import math
import pickle
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymlc.errors import UserError, did_you_mean
from raymlc.fields import LAWS, PerHead
from raymlc.trial import ANNOTATIONS, FIELDS, TrialConfig, check_field, parse_assignment

DEFAULTS = TrialConfig().to_dict()
CHOICES = {
    name: get_args(kind) for name, kind in ANNOTATIONS.items() if get_origin(kind) is Literal
}
PER_HEAD = ["head_losses", "head_weights"]
FLOATS = [name for name, value in DEFAULTS.items() if type(value) is float]
NUMBERS = [name for name, value in DEFAULTS.items() if type(value) in (int, float)]

# For each law the values on either side of its ends: refused ones, then allowed ones.
ENDS: dict[str, tuple[list[Any], list[Any]]] = {
    "backbone": ([""], ["resnet18.a1_in1k"]),
    "image_size": ([7, 4097], [8, 4096]),
    "drop_rate": ([-0.01, 1.0], [0.0, 0.99]),
    "drop_path_rate": ([-0.01, 1.0], [0.0, 0.99]),
    "bn_momentum": ([-0.01, 1.01], [0.0, 1.0]),
    "bn_eps": ([-1e-9, 1.0], [0.0, 0.99]),
    "freeze_epochs": ([-1, 11], [0, 10]),
    "lr": ([0.0, -1e-3], [1e-12, 10.0]),
    "head_lr_scale": ([0.0], [1e-3, 100.0]),
    "weight_decay": ([-1e-9], [0.0, 5.0]),
    "beta1": ([-0.1, 1.0], [0.0, 0.99]),
    "beta2": ([-0.1, 1.0], [0.0, 0.9999]),
    "momentum": ([-0.1, 1.0], [0.0, 0.99]),
    "eps": ([0.0], [1e-16, 1.0]),
    "clip_grad": ([-1.0], [0.0, 5.0]),
    "warmup_epochs": ([-0.1, 10.0, 11.0], [0.0, 9.99]),
    "warmup_lr_ratio": ([-0.01, 1.01], [0.0, 1.0]),
    "min_lr_ratio": ([-0.01, 1.01], [0.0, 1.0]),
    "cooldown_epochs": ([-0.1], [0.0, 9.99]),
    "decay_epochs": ([0.0, -1.0], [1e-3, 100.0]),
    "decay_rate": ([0.0, 1.0], [1e-3, 0.999]),
    "patience_epochs": ([-1], [0, 100]),
    "epochs": ([0, -3], [1, 1000]),
    "batch_size": ([1, 0], [2, 8192]),
    "micro_batch_size": ([-1, 1], [0, 2, 8192]),
    "ema_decay": ([-0.1, 1.0], [0.0, 0.9999]),
    "focal_gamma": ([-0.01], [0.0, 10.0]),
    "asl_gamma_pos": ([-0.01], [0.0, 10.0]),
    "asl_gamma_neg": ([-0.01], [0.0, 10.0]),
    "asl_clip": ([-0.01, 1.0], [0.0, 0.99]),
    "smoothing": ([-0.1, 1.0], [0.0, 0.9]),
    "class_weight_beta": ([0.0, 1.0], [1e-3, 0.9999]),
    "gradnorm_alpha": ([-0.01], [0.0, 10.0]),
    "randaug_ops": ([-1, 9], [0, 8]),
    "randaug_magnitude": ([-0.01, 10.01], [0.0, 10.0]),
    "randaug_std": ([-0.01, 10.01], [0.0, 10.0]),
    "color_jitter": ([-0.01, 1.01], [0.0, 1.0]),
    "crop_min_area": ([0.0, 1.01], [0.01, 1.0]),
    "crop_max_ratio": ([0.99, 10.01], [1.0, 10.0]),
    "hflip_prob": ([-0.1, 1.01], [0.0, 1.0]),
    "vflip_prob": ([-0.1, 1.01], [0.0, 1.0]),
    "erasing_prob": ([-0.1, 1.01], [0.0, 1.0]),
    "erasing_count": ([0, 17], [1, 16]),
    "mixup_alpha": ([-0.01], [0.0, 100.0]),
    "cutmix_alpha": ([-0.01], [0.0, 100.0]),
    "mix_prob": ([-0.01, 1.01], [0.0, 1.0]),
    "mix_off_epochs": ([-1, 11], [0, 10]),
    "eval_crop": ([0.09, 1.01], [0.1, 1.0]),
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


def test_every_number_has_a_law_and_every_law_its_ends_in_these_tests() -> None:
    assert set(NUMBERS) <= set(ENDS) <= set(FIELDS)
    assert set(LAWS) == {*ENDS, "head_weights"} - {"warmup_epochs"}


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
        ("schedule", "linear", "choose from cosine, step, plateau, constant"),
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


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_takes_each_of_its_names_and_no_other(name: str) -> None:
    for choice in CHOICES[name]:
        assert getattr(TrialConfig(**{name: choice}), name) == choice
    for other in ("", CHOICES[name][0].upper(), 0, None, ["cosine"]):
        line = refusal(**{name: other})
        assert line.startswith(f"{name} must be one of its names, but is {other!r}; ")


@pytest.mark.parametrize(
    ("epochs", "cooldown_epochs", "warmup_epochs", "line"),
    [
        (3, 0, 3, "less than epochs, but they are 3.0 and 3; shorten the warm-up"),
        (3, 0, 2.99, None),
        (3, 1, 2, "less than epochs before the cooldown, but they are 2.0 and 2; shorten the"),
        (3, 1, 1.99, None),
        (3, 0.5, 2.5, "before the cooldown, but they are 2.5 and 2.5"),
        (3, 2.99, 0, None),
        (3, 3, 0, "but they are 0.0 and 0; shorten the warm-up or the cooldown"),
        (3, 5, 0, "but they are 0.0 and -2; shorten the warm-up or the cooldown"),
    ],
)
def test_a_trial_has_epochs_between_its_warm_up_and_its_cooldown(
    epochs: int, cooldown_epochs: float, warmup_epochs: float, line: str | None
) -> None:
    values: dict[str, Any] = {"epochs": epochs, "warmup_epochs": warmup_epochs}
    values["cooldown_epochs"] = cooldown_epochs
    if line is None:
        assert TrialConfig(**values).epochs == epochs
    else:
        assert line in refusal(**values)


@pytest.mark.parametrize("name", ["freeze_epochs", "mix_off_epochs"])
def test_a_count_of_some_epochs_is_at_most_that_of_all(name: str) -> None:
    assert getattr(TrialConfig.from_dict({"epochs": 3, name: 3}), name) == 3
    expected = f"{name} must be at most epochs, but they are 4 and 3; lower it"
    assert refusal(**{"epochs": 3, name: 4}) == expected


@pytest.mark.parametrize("randaug_ops", [0, 2])
@pytest.mark.parametrize("autoaugment", [False, True])
@pytest.mark.parametrize("augmix", [False, True])
def test_at_most_one_augmentation_policy_is_on(
    randaug_ops: int, autoaugment: bool, augmix: bool
) -> None:
    values: dict[str, Any] = {"randaug_ops": randaug_ops}
    values |= {"autoaugment": autoaugment, "augmix": augmix}
    on = [name for name, value in values.items() if value]
    if len(on) < 2:
        assert TrialConfig(**values).randaug_ops == randaug_ops
    else:
        assert refusal(**values) == (
            "at most one of randaug_ops, autoaugment and augmix may be on, but"
            f" {' and '.join(on)} are; turn all but one off"
        )


@pytest.mark.parametrize("task_weighting", ["uncertainty", "gradnorm"])
def test_weights_of_heads_are_refused_where_weights_are_learnt(task_weighting: str) -> None:
    line = refusal(task_weighting=task_weighting, head_weights={"color": 2.0})
    assert line.startswith("head_weights are the weights of task_weighting 'fixed', but that is")
    assert repr(task_weighting) in line
    losses = TrialConfig(task_weighting="gradnorm", head_losses={"color": "focal"})
    assert losses.head_losses == {"color": "focal"}
    assert TrialConfig(head_weights={"color": 2.0}).head_weights == {"color": 2.0}


@pytest.mark.parametrize("optimizer", ["adamp", "sgd", "lookahead_adamw"])
def test_gradient_centralization_goes_with_any_optimizer(optimizer: str) -> None:
    assert TrialConfig(gc=True, optimizer=optimizer).gc


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


def values_of(name: str) -> st.SearchStrategy[Any]:
    """Values of a field that its own law allows."""
    kind = ANNOTATIONS[name]
    if kind is int:
        return st.integers(ENDS[name][1][0], ENDS[name][1][-1])
    if kind is float:
        return st.floats(*ENDS[name][1])
    if kind is bool:
        return st.booleans()
    if kind is str:
        return st.text(min_size=1)
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    ones = st.floats(1e-3, 100) if name == "head_weights" else st.sampled_from(CHOICES["loss"])
    return st.dictionaries(st.text(), ones, max_size=4)


@st.composite
def trials(draw: st.DrawFn) -> TrialConfig:
    """Any trial that the laws allow."""
    values = {name: draw(values_of(name)) for name in FIELDS}
    epochs = values["epochs"]
    values["cooldown_epochs"] = draw(st.floats(0, epochs, exclude_max=True))
    warm = epochs - values["cooldown_epochs"]
    values["warmup_epochs"] = draw(st.floats(0, warm, exclude_max=True))
    for name in ("freeze_epochs", "mix_off_epochs"):
        values[name] = draw(st.integers(0, epochs))
    if values["micro_batch_size"] == 1:
        values["micro_batch_size"] = 2
    if values["task_weighting"] != "fixed":
        values["head_weights"] = {}
    policies = {"randaug_ops": 0, "autoaugment": False, "augmix": False}
    del policies[draw(st.sampled_from(list(policies)))]
    return TrialConfig(**values | policies)


@given(trials())
def test_a_trial_comes_back_from_json_and_from_a_pickle_as_it_was(config: TrialConfig) -> None:
    for twin in (
        TrialConfig.from_dict(json.loads(json.dumps(config.to_dict()))),
        pickle.loads(pickle.dumps(config)),
        copy.deepcopy(config),
        config.replace({}),
    ):
        assert twin == config
        assert hash(twin) == hash(config)


HEAD_NAMES = ["color", "a/b", "/", "", "a=b", "Farbe (größte)", "lr"]


@pytest.mark.parametrize("head", HEAD_NAMES)
def test_a_value_for_one_head_is_named_with_the_head_whatever_its_name(head: str) -> None:
    config = TrialConfig.from_dict({f"head_weights/{head}": 2, f"head_losses/{head}": "focal"})
    assert config == TrialConfig(head_weights={head: 2.0}, head_losses={head: "focal"})
    assert type(config.head_weights[head]) is float
    assert config.to_dict()["head_weights"] == {head: 2.0}
    assert TrialConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_head_without_a_value_of_its_own_has_none() -> None:
    assert TrialConfig().head_weights == {}
    assert TrialConfig().head_losses == {}
    assert TrialConfig().to_dict()["head_weights"] == {}


def test_trials_that_differ_in_one_heads_value_are_two() -> None:
    one = TrialConfig(head_weights={"color": 2, "shape": 1})
    assert one == TrialConfig(head_weights={"shape": 1.0, "color": 2.0})
    assert hash(one) == hash(TrialConfig(head_weights={"shape": 1.0, "color": 2.0}))
    others = [{"color": 2}, {"color": 2, "shape": 3}, {"color": 2, "tags": 1}, {}]
    assert len({one, *(TrialConfig(head_weights=other) for other in others)}) == 5


def test_values_per_head_change_with_no_dict_that_was_given_or_taken() -> None:
    given = {"color": 2.0}
    config = TrialConfig(head_weights=given)
    given["color"] = 3.0
    config.to_dict()["head_weights"]["color"] = 4.0
    assert config.head_weights == {"color": 2.0}
    with pytest.raises(TypeError):
        config.head_weights["color"] = 5.0  # type: ignore[index]


def test_replacing_one_heads_value_keeps_those_of_the_others() -> None:
    config = TrialConfig(head_weights={"color": 2, "shape": 3}, head_losses={"color": "bce"})
    changed = config.replace({"head_weights/color": 5, "head_weights/tags": 0.5})
    assert changed.head_weights == {"color": 5.0, "shape": 3.0, "tags": 0.5}
    assert changed.head_losses == {"color": "bce"}
    assert config.head_weights == {"color": 2.0, "shape": 3.0}
    assert config.replace({"head_weights": {"tags": 1}}).head_weights == {"tags": 1.0}
    assert config.replace({"head_weights": {}}).head_weights == {}


def test_one_heads_value_goes_over_the_whole_fields_in_whatever_order_they_come() -> None:
    values = {"head_weights": {"color": 2, "shape": 3}, "head_weights/color": 5, "lr": 0.1}
    for order in itertools.permutations(values):
        config = TrialConfig.from_dict({name: values[name] for name in order})
        assert config.head_weights == {"color": 5.0, "shape": 3.0}


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"head_weights": 2}, "head_weights must be an object with a value a head, but is 2"),
        ({"head_weights": [1]}, "head_weights must be an object with a value a head, but is [1]"),
        ({"head_weights": None}, "head_weights must be an object with a value a head, but is None"),
        (
            {"head_weights": 2, "head_weights/color": 2},
            "head_weights must be an object with a value a head, but is 2",
        ),
        ({"head_weights/color": "2"}, "head_weights of 'color' must be of type float, but is '2'"),
        ({"head_weights/color": True}, "head_weights of 'color' must be of type float, but is T"),
        ({"head_weights/color": 0}, "head_weights of 'color' must be above 0, but is 0.0"),
        ({"head_weights/color": math.nan}, "head_weights of 'color' must be above 0, but is nan"),
        ({"head_weights/color": math.inf}, "head_weights of 'color' must be above 0, but is inf"),
        ({"head_weights": {"a": 1, "b": -1}}, "head_weights of 'b' must be above 0, but is -1.0"),
        (
            {"head_losses/color": "focall"},
            "head_losses of 'color' must be one of its names, but is 'focall'; did you mean 'fo",
        ),
        ({"head_losses/color": 1}, "head_losses of 'color' must be one of its names, but is 1; "),
    ],
)
def test_a_heads_value_beyond_its_law_is_refused_by_field_head_and_value(
    values: dict[str, Any], line: str
) -> None:
    with pytest.raises(UserError) as refused:
        TrialConfig.from_dict(values)
    assert str(refused.value).startswith(line)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["lr/color", "backbone/color", "loss/color", "gc/", "epochs/a/b"])
def test_a_head_is_refused_of_a_field_with_one_value_for_all_heads(name: str) -> None:
    field = name.partition("/")[0]
    for attempt in (
        lambda: check_field(name),
        lambda: TrialConfig.from_dict({name: 1}),
        lambda: TrialConfig().replace({name: 1}),
        lambda: parse_assignment(f"{name}=1"),
    ):
        with pytest.raises(UserError) as refused:
            attempt()
        assert str(refused.value) == (
            f"{name!r} is not a field of TrialConfig; set {field!r}, which has one value for all"
            " heads"
        )


@pytest.mark.parametrize("name", [*FIELDS, "head_weights/color", "head_losses/a/b", "head_losses/"])
def test_the_names_of_fields_and_of_their_heads_are_fields(name: str) -> None:
    check_field(name)


@pytest.mark.parametrize("field", PER_HEAD)
def test_a_value_for_what_is_no_head_of_the_table_is_refused_with_near_heads(field: str) -> None:
    value: Any = "focal" if field == "head_losses" else 2
    known = ("color", "shape")
    TrialConfig().check_heads(known)
    TrialConfig.from_dict({f"{field}/color": value}).check_heads(iter(known))
    for head, way_out in (
        ("colour", "did you mean 'color'?"),
        ("zzz", "the heads are color, shape"),
        ("", "the heads are color, shape"),
    ):
        config = TrialConfig.from_dict({f"{field}/color": value, f"{field}/{head}": value})
        with pytest.raises(UserError) as refused:
            config.check_heads(iter(known))
        assert str(refused.value) == f"{field} is set for {head!r}, which is no head; {way_out}"


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
        ("head_weigths/a_head_of_a_rather_long_name", "did you mean 'head_weights'"),
        ("/color", "the fields are backbone, pretrained, "),
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
        ("head_weights/color=2", "head_weights/color", 2.0),
        ("head_weights/a/b=0.5", "head_weights/a/b", 0.5),
        ("head_losses/color=focal", "head_losses/color", "focal"),
        ('head_weights={"color": 2}', "head_weights", PerHead({"color": 2.0})),
        ('head_weights={"A/b=c": 2, "d": 1}', "head_weights", PerHead({"A/b=c": 2.0, "d": 1.0})),
        ('head_losses={"Color": "bce"}', "head_losses", PerHead({"Color": "bce"})),
        ("head_weights={}", "head_weights", PerHead()),
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
        (f"lr={'1' * 400}", "lr must be of type float, but is 111"),
        (f"epochs={'1' * 5000}", "epochs must be of type int, but is '111"),
        ("head_weights=2", "head_weights must be an object with a value a head, but is 2"),
        ("head_weights=color", "head_weights must be an object with a value a head, but is 'co"),
        ('head_weights={"color": "x"}', "head_weights of 'color' must be of type float, but is"),
        ("head_weights/color=x", "head_weights/color must be of type float, but is 'x'"),
        ("head_losses/color=bc", "head_losses/color must be one of its names, but is 'bc'; did"),
        ('head_losses={"color": "bc"}', "head_losses of 'color' must be one of its names, but"),
    ],
)
def test_a_setting_that_cannot_be_read_is_refused_with_what_it_says(text: str, line: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_assignment(text)
    assert str(refused.value).startswith(line)


@given(trials())
def test_every_field_of_a_trial_comes_back_from_its_setting(config: TrialConfig) -> None:
    settings = config.to_dict()
    for field in PER_HEAD:
        # A setting ends its name at the first "=", so only such heads can be named in it.
        heads = {head: one for head, one in settings[field].items() if "=" not in head}
        settings |= {f"{field}/{head}": one for head, one in heads.items()}
    for name, value in settings.items():
        text = value if isinstance(value, str) else json.dumps(value)
        assert parse_assignment(f"{name}={text}") == (name, value)
    assert TrialConfig.from_dict(settings) == config


NAMES = [*FIELDS, *(f"{field}/color" for field in PER_HEAD)]


@given(st.sampled_from(["", *(f"{name}=" for name in NAMES)]), st.text())
def test_any_text_is_a_setting_of_its_fields_type_or_refused(start: str, text: str) -> None:
    try:
        name, value = parse_assignment(start + text)
    except UserError:
        return
    assert (start + text).startswith(f"{name}=")
    of_a_head = {"head_weights/color": float, "head_losses/color": str}
    field = name.partition("/")[0]
    assert type(value) is of_a_head.get(name, type(getattr(TrialConfig(), field)))
