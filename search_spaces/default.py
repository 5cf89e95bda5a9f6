"""AdamP's learning rate, dropout on every head, drop path, and gradient centralization on or off.

Command:   python -m raymlc.tune --data <folder> --trials 32
Backbone:  efficientnet_b0 from its pretrained weights; another with --set backbone=<timm model>
Result:    on the first 4,000 + 1,000 rows of the product photos, 10 trials of up to 6 epochs of
           tf_efficientnet_lite0 at 64 pixels: val/accuracy 0.722 (majority class 0.291) after 20
           epochs in all, 19 minutes on 2 busy CPU cores; n = 1
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
