"""A search space is checked before a sweep begins, and its mistakes are named by file and line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FixedTrial

from raymlc.errors import UserError
from raymlc.search.space import built_in, check_space, load_space
from raymlc.trial import TrialConfig

SPACES = sorted((Path(__file__).parents[2] / "search_spaces").glob("*.py"))
GOOD = """from raymlc.trial import TrialConfig


def space(trial):
    return TrialConfig(
        backbone="test_efficientnet",
        lr=trial.suggest_float("lr", 1e-4, 1e-1, log=True),
        epochs=trial.suggest_int("epochs", 2, 5),
    )
"""
Writer = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """write(text): the file of a space."""

    def write(text: str) -> Path:
        path = tmp_path / "mine.py"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def body(text: str) -> str:
    """A space whose function, from line 3 on, is this text."""
    lines = "\n".join("    " + line for line in text.strip().splitlines())
    return f"from raymlc.trial import TrialConfig\ndef space(trial):\n{lines}\n"


def refusal(path: Path, fixed: dict[str, Any] | None = None) -> str:
    """The one line in which a space is refused, by `load_space` or by `check_space`."""
    with pytest.raises(UserError) as refused:
        check_space(load_space(path, fixed or {}))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_space_asks_the_trial_for_the_fields_that_it_searches(write: Writer) -> None:
    space = load_space(write(GOOD), {})
    assert space(FixedTrial({"lr": 0.01, "epochs": 3})) == TrialConfig(
        backbone="test_efficientnet", lr=0.01, epochs=3
    )


def test_fixed_fields_stand_over_the_spaces_own(write: Writer) -> None:
    space = load_space(write(GOOD), {"backbone": "resnet18", "batch_size": 8})
    config = space(FixedTrial({"lr": 0.01, "epochs": 3}))
    assert (config.backbone, config.batch_size, config.lr) == ("resnet18", 8, 0.01)


def test_a_check_draws_different_trials_and_the_same_ones_each_time(write: Writer) -> None:
    space = load_space(write(GOOD), {})
    first, again = check_space(space), check_space(space)
    assert first == again
    assert len({config.lr for config in first}) == len(first) >= 20
    assert {config.epochs for config in first} == {2, 3, 4, 5}


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_every_space_that_comes_along_passes_the_check(path: Path) -> None:
    configs = check_space(load_space(path, {}))
    assert len(set(configs)) > 20
    assert built_in(path.stem).read_text() == path.read_text()


def test_the_default_spaces_search_what_the_help_says() -> None:
    for name in ("default", "demo"):
        study = optuna.create_study()
        trial = study.ask()
        load_space(built_in(name), {})(trial)
        assert set(trial.params) == {"lr", "drop_rate", "drop_path_rate", "gc"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("import nowhere_at_all\n" + GOOD, "mine.py line 1: ModuleNotFoundError: No module named"),
        (GOOD + "\n\n1 / 0\n", "mine.py line 12: ZeroDivisionError: division by zero"),
        (GOOD.replace("(trial):", "(trial)"), "mine.py line 4: expected ':'"),
        (GOOD.replace("        epochs", "      epochs = 3)\n   x"), "mine.py line "),
        ("x = 1\n\x00", "mine.py"),
        (GOOD.replace("1e-4, 1e-1", "1e-1, 1e-4"), "mine.py line 7: ValueError: "),
        (GOOD.replace("TrialConfig(", "TrialConf("), "mine.py line 5: NameError: "),
        (GOOD.replace("suggest_int", "sugest_int"), "mine.py line 8: AttributeError: "),
        (
            GOOD.replace("lr=", "lrr="),
            "mine.py line 5: 'lrr' is not a field of TrialConfig; did you mean 'lr'",
        ),
        (
            GOOD.replace("epochs=", "zzz="),
            "mine.py line 5: 'zzz' is not a field of TrialConfig; the fields are",
        ),
        (GOOD.replace("2, 5", "0, 1"), "mine.py line 5: epochs must be at least 1, but is 0"),
        (
            GOOD.replace("backbone=", "warmup_epochs=4.5, backbone="),
            "mine.py line 5: warmup_epochs must be at least 0 and less than epochs, but they are 4",
        ),
        (
            body("x = helper(trial)\nreturn x\ndef helper(trial): pass"),
            "mine.py line 3: UnboundLocalError",
        ),
    ],
)
def test_a_mistake_is_named_by_the_line_that_makes_it(write: Writer, text: str, line: str) -> None:
    assert refusal(write(text)).startswith(line)


def test_a_mistake_in_a_function_of_the_file_is_named_by_its_own_line(write: Writer) -> None:
    text = GOOD.replace("1e-1, log=True", "limit()") + "\n\ndef limit():\n    return {}['lr']\n"
    assert refusal(write(text)) == "mine.py line 13: KeyError: 'lr'"


def test_a_mistake_in_another_file_is_named_by_the_line_that_uses_it(
    write: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raymlc_test_helper.py").write_text("\n\n\n\n\n\ndef f(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    line = refusal(write("\nimport raymlc_test_helper\n" + GOOD))
    assert line.startswith("mine.py line 2: SyntaxError: ")
    assert "raymlc_test_helper.py, line 7" in line


def test_a_file_in_another_encoding_is_refused_and_a_byte_order_mark_is_not(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_bytes(b"name = 'gr\xf6\xdfe'\n" + GOOD.encode())
    assert refusal(path).startswith("mine.py")
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert check_space(load_space(path, {}))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.py"):
        assert refusal(path) == f"--space must name a Python file, but {path} is not a file"


@pytest.mark.parametrize("text", ["", "def spaces(trial): pass", "space = 3"])
def test_a_file_without_a_function_space_is_refused(write: Writer, text: str) -> None:
    assert refusal(write(text)) == "mine.py must define a function space(trial), but does not"


@pytest.mark.parametrize("result", ["None", "{'lr': 0.1}", "trial"])
def test_a_space_that_returns_no_trial_is_refused(write: Writer, result: str) -> None:
    line = refusal(write(body(f"trial.suggest_float('lr', 0.1, 1)\nreturn {result}")))
    assert line.startswith("mine.py: space(trial) must return a TrialConfig, but returned ")


@pytest.mark.parametrize(
    ("name", "way_out"),
    [("learning_rat", "the fields are"), ("drop_rates", "did you mean 'drop_rate'")],
)
def test_an_asked_name_that_is_no_field_is_refused(write: Writer, name: str, way_out: str) -> None:
    line = refusal(write(GOOD.replace('"lr"', f'"{name}"')))
    assert line.startswith(f"mine.py: an asked name must be a field: {name!r} is not a field")
    assert way_out in line


def test_a_name_that_is_asked_in_two_ranges_in_two_trials_is_refused(write: Writer) -> None:
    text = body("""
gc = trial.suggest_categorical("gc", [False, True])
lr = trial.suggest_float("lr", 0.1, 1) if gc else trial.suggest_float("lr", 0.01, 1)
return TrialConfig(gc=gc, lr=lr)
""")
    line = refusal(write(text))
    assert line.startswith("mine.py: a name must keep one range, but lr is asked in ")
    assert "low=0.1" in line
    assert "low=0.01" in line
    assert line.endswith("ask it once and scale the answer")


def test_a_name_that_is_asked_in_two_ranges_in_one_trial_is_refused(write: Writer) -> None:
    text = body("""
lr = trial.suggest_float("lr", 0.01, 0.1)
if lr > 0.05:
    lr = trial.suggest_float("lr", 0.001, 0.01)
return TrialConfig(lr=lr)
""")
    assert refusal(write(text)) == (
        "mine.py line 5: a name must keep one range; ask it once and scale the answer"
    )


def test_a_name_that_is_asked_twice_in_one_range_has_one_answer(write: Writer) -> None:
    text = body("""
lr = trial.suggest_float("lr", 0.01, 0.1)
return TrialConfig(lr=lr, min_lr_ratio=trial.suggest_float("lr", 0.01, 0.1))
""")
    for config in check_space(load_space(write(text), {})):
        assert config.lr == config.min_lr_ratio


def test_a_name_may_be_asked_in_some_trials_alone(write: Writer) -> None:
    text = body("""
gc = trial.suggest_categorical("gc", [False, True])
conv_only = gc and trial.suggest_categorical("gc_conv_only", [False, True])
return TrialConfig(gc=gc, gc_conv_only=conv_only)
""")
    configs = check_space(load_space(write(text), {}))
    assert {(config.gc, config.gc_conv_only) for config in configs} == {
        (False, False),
        (True, False),
        (True, True),
    }


def test_a_field_that_is_both_fixed_and_searched_is_refused(write: Writer) -> None:
    assert refusal(write(GOOD), {"lr": 0.5}) == (
        "lr is searched by mine.py, but also set to 0.5; drop --set lr, or do not ask for it in the"
        " space"
    )


@pytest.mark.parametrize(
    ("fixed", "line"),
    [
        ({"weight_decay": -1.0}, "weight_decay must be at least 0, but is -1.0"),
        ({"warmup_epochs": 3.0}, "warmup_epochs must be at least 0 and less than epochs"),
        ({"learning_rat": 1.0}, "'learning_rat' is not a field"),
    ],
)
def test_a_fixed_field_keeps_the_laws_of_every_trial(
    write: Writer, fixed: dict[str, Any], line: str
) -> None:
    assert refusal(write(GOOD), fixed).startswith(line)


def test_a_space_that_asks_for_nothing_is_refused(write: Writer) -> None:
    line = refusal(write(body("return TrialConfig()")))
    assert line.startswith("mine.py must ask for something to search, but asks for nothing; use")
