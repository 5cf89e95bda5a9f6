"""Stochastic gradient descent with Nesterov's momentum, clipped or not.

Command:   python -m raymlc.tune --data <folder> --space search_spaces/sgd.py --trials 32
Backbone:  efficientnet_b0 from its pretrained weights; another with --set backbone=<timm model>
Result:    on the first 4,000 + 1,000 rows of the product photos, 24 trials of up to 8 epochs of
           test_efficientnet at 64 pixels from random weights: val/accuracy 0.675 (majority class
           0.291), by AGC and an lr of 0.46, after 94 epochs in all, 15 minutes on 2 busy CPU
           cores; n = 1
"""

from optuna.trial import BaseTrial

from raymlc.trial import TrialConfig


def space(trial: BaseTrial) -> TrialConfig:
    clipped = trial.suggest_categorical("clip_mode", ["norm", "agc"]) == "agc"
    return TrialConfig(
        optimizer="sgd",
        lr=trial.suggest_float("lr", 1e-2, 1.0, log=True),
        momentum=trial.suggest_float("momentum", 0.8, 0.98),
        weight_decay=trial.suggest_float("weight_decay", 1e-6, 1e-3, log=True),
        warmup_epochs=trial.suggest_float("warmup_epochs", 0.1, 2.0),
        gc=trial.suggest_categorical("gc", [False, True]),
        clip_mode="agc" if clipped else "norm",
        clip_grad=trial.suggest_float("clip_grad", 0.01, 0.2, log=True) if clipped else 0.0,
        drop_rate=trial.suggest_float("drop_rate", 0.0, 0.5),
        drop_path_rate=trial.suggest_float("drop_path_rate", 0.0, 0.3),
    )
