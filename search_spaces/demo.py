"""The default space for a network small enough to train on a CPU in seconds, from random weights.

Command:   python -m raymlc.tune
"""

from optuna.trial import BaseTrial

from raymlc.trial import TrialConfig


def space(trial: BaseTrial) -> TrialConfig:
    return TrialConfig(
        backbone="test_efficientnet",
        pretrained=False,
        image_size=48,
        epochs=12,
        lr=trial.suggest_float("lr", 1e-3, 1e-1, log=True),
        drop_rate=trial.suggest_float("drop_rate", 0.0, 0.5),
        drop_path_rate=trial.suggest_float("drop_path_rate", 0.0, 0.3),
        gc=trial.suggest_categorical("gc", [False, True]),
    )
