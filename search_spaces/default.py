"""AdamP's learning rate, dropout on every head, drop path, and gradient centralization on or off.

Command:   python -m raymlc.tune --data <folder> --trials 32
Backbone:  efficientnet_b0 from its pretrained weights; another with --set backbone=<timm model>
"""

from optuna.trial import BaseTrial

from raymlc.trial import TrialConfig


def space(trial: BaseTrial) -> TrialConfig:
    return TrialConfig(
        lr=trial.suggest_float("lr", 3e-4, 1e-2, log=True),
        drop_rate=trial.suggest_float("drop_rate", 0.0, 0.5),
        drop_path_rate=trial.suggest_float("drop_path_rate", 0.0, 0.3),
        gc=trial.suggest_categorical("gc", [False, True]),
    )
