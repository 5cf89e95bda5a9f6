"""The search space: a Python file with a function `space(trial) -> TrialConfig`."""

from __future__ import annotations

import re
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import BaseTrial

from raymlc.errors import UserError, did_you_mean, one_line
from raymlc.trial import FIELDS, TrialConfig, check_field

_SAMPLES = 30  # draws of a space before a sweep begins
_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Space:
    """A search space from a file, with some fields fixed over it."""

    path: Path
    function: Callable[[BaseTrial], TrialConfig]
    fixed: Mapping[str, Any]

    def __call__(self, trial: BaseTrial) -> TrialConfig:
        """Ask `trial` for its parameters. Raises UserError, naming the line of a mistake."""
        try:
            config = self.function(trial)
        except (Exception, SystemExit) as error:
            raise UserError(f"{self._place(error)}: {_explain(error)}") from error
        if not isinstance(config, TrialConfig):
            raise UserError(
                f"{self.path.name}: space(trial) must return a TrialConfig, but returned {config!r}"
            )
        for name in trial.params:
            try:
                check_field(name)
            except UserError as error:
                raise UserError(
                    f"{self.path.name}: an asked name must be a field: {error}"
                ) from error
            if name in self.fixed:
                raise UserError(
                    f"{name} is searched by {self.path.name}, but also set to {self.fixed[name]!r};"
                    f" drop --set {name}, or do not ask for it in the space"
                )
        return config.replace(self.fixed) if self.fixed else config

    def _place(self, error: BaseException) -> str:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == str(self.path)
        ]
        return f"{self.path.name} line {lines[-1]}" if lines else self.path.name


def built_in(name: str) -> Path:
    """The path of a space that comes with raymlc, such as "default"."""
    # In a wheel the spaces lie in the package; in a checkout, beside it.
    inside = _PACKAGE / "search_spaces" / f"{name}.py"
    return inside if inside.is_file() else _PACKAGE.parent / "search_spaces" / f"{name}.py"


def load_space(path: Path, fixed: Mapping[str, Any]) -> Space:
    """Run a space's file, which is Python code of the user's, and find its `space`.

    Raises UserError, naming the line, for a file that is not there or does not run.
    """
    if not path.is_file():
        raise UserError(f"--space must name a Python file, but {path} is not a file")
    names: dict[str, Any] = {"__name__": "raymlc_search_space", "__file__": str(path)}
    space = Space(path, lambda trial: TrialConfig(), fixed)
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), names)  # code that the user chose
    except (Exception, SystemExit) as error:
        if isinstance(error, SyntaxError) and error.filename == str(path):
            raise UserError(f"{path.name} line {error.lineno}: {error.msg}") from error
        raise UserError(f"{space._place(error)}: {_explain(error)}") from error
    if not callable(names.get("space")):
        raise UserError(f"{path.name} must define a function space(trial), but does not")
    return Space(path, names["space"], fixed)


def check_space(space: Space) -> list[TrialConfig]:
    """Draw a space at random some times; the trials it gave.

    Raises UserError for what `Space` refuses, a name asked in two ranges, and a space that asks for
    nothing.
    """
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    configs: list[TrialConfig] = []
    ranges: dict[str, BaseDistribution] = {}
    for _ in range(_SAMPLES):
        trial = study.ask()
        with warnings.catch_warnings():
            # Optuna only warns of a second range in one trial, and goes on with the first.
            warnings.filterwarnings("error", "Inconsistent parameter values", RuntimeWarning)
            configs.append(space(trial))
        for name, distribution in trial.distributions.items():
            before = ranges.setdefault(name, distribution)
            if before != distribution:
                raise UserError(
                    f"{space.path.name}: a name must keep one range, but {name} is asked in"
                    f" {before} and in {distribution}; ask it once and scale the answer"
                )
    if not ranges:
        raise UserError(
            f"{space.path.name} must ask for something to search, but asks for nothing; use"
            " trial.suggest_float, suggest_int or suggest_categorical"
        )
    return configs


def _explain(error: BaseException) -> str:
    unexpected = re.search(
        r"TrialConfig\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error)
    )
    if unexpected:
        name = unexpected[1]
        way_out = did_you_mean(name, FIELDS, f"the fields are {', '.join(FIELDS)}")
        return f"{name!r} is not a field of TrialConfig; {way_out}"
    if isinstance(error, RuntimeWarning):  # what `check_space` makes an error
        return "a name must keep one range; ask it once and scale the answer"
    return str(error) if isinstance(error, UserError) else one_line(error)
