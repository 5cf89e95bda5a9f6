"""Which network, at which size, augmented and trained how: for a first look at a data set.

Command:   python -m raymlc.tune --data <folder> --space search_spaces/broad.py --trials 100
Backbone:  one of four, from ImageNet weights; made for a GPU
Result:    with tf_efficientnet_lite0 at 64 pixels alone, and 4 epochs, on the first 2,000 + 1,000
           rows of the product photos, --metric val/accuracy/article,val/accuracy/color, 16 trials:
           a front of .624 and .428, .559 and .442, .552 and .454 (majority classes .160, .217)
           after 34 epochs in all, 8 minutes on 2 busy CPU cores; n = 1
"""

from optuna.trial import BaseTrial

from raymlc.trial import TrialConfig

BACKBONES = ["tf_efficientnet_lite0", "efficientnet_b0", "efficientnet_b2", "convnext_nano"]


def space(trial: BaseTrial) -> TrialConfig:
    optimizer = trial.suggest_categorical("optimizer", ["adamp", "adamw"])
    learnt = trial.suggest_categorical("task_weighting", ["fixed", "uncertainty"])
    randaug_ops = trial.suggest_int("randaug_ops", 0, 2)
    return TrialConfig(
        backbone=trial.suggest_categorical("backbone", BACKBONES),
        image_size=trial.suggest_categorical("image_size", [128, 160, 224]),
        optimizer=optimizer,
        gc=optimizer == "adamp" and trial.suggest_categorical("gc", [False, True]),
        lr=trial.suggest_float("lr", 3e-4, 1e-2, log=True),
        head_lr_scale=trial.suggest_float("head_lr_scale", 0.5, 10.0, log=True),
        weight_decay=trial.suggest_float("weight_decay", 1e-4, 1e-1, log=True),
        freeze_epochs=trial.suggest_int("freeze_epochs", 0, 2),
        ema_decay=trial.suggest_categorical("ema_decay", [0.0, 0.99, 0.998]),
        drop_rate=trial.suggest_float("drop_rate", 0.0, 0.5),
        drop_path_rate=trial.suggest_float("drop_path_rate", 0.0, 0.3),
        smoothing=trial.suggest_float("smoothing", 0.0, 0.2),
        task_weighting="uncertainty" if learnt == "uncertainty" else "fixed",
        crop_min_area=trial.suggest_float("crop_min_area", 0.2, 1.0),
        randaug_ops=randaug_ops,
        randaug_magnitude=(
            trial.suggest_float("randaug_magnitude", 2.0, 10.0) if randaug_ops else 9.0
        ),
        # A change of colours changes what the head of a colour is to say.
        randaug_color=bool(randaug_ops)
        and trial.suggest_categorical("randaug_color", [False, True]),
        erasing_prob=trial.suggest_float("erasing_prob", 0.0, 0.5),
        epochs=12,
    )
