"""The recipe of the 2021 multi-label fork of pytorch-image-models, and a search around it.

Command:   python -m raymlc.train --data <folder> --trial search_spaces/recipe_2021.py
           python -m raymlc.tune --data <folder> --space search_spaces/recipe_2021.py --trials 32
Backbone:  efficientnet_b2 at 260 pixels from ImageNet weights; made for a GPU

It is ImageNet's recipe of EfficientNet-B2 with another optimizer; no number of it was tuned for a
multi-label table. Two of its numbers are not what its command line said: dropout of the heads was
0.2 whatever was asked, and its 50 epochs were followed by 10 at the least lr.
lr and eps belong together: an lr this high is sane only beside an eps this high.
"""

from optuna.trial import BaseTrial

from raymlc.trial import TrialConfig

LR = 0.016
RECIPE = TrialConfig(
    backbone="efficientnet_b2.ra_in1k",
    image_size=260,
    drop_rate=0.2,
    drop_path_rate=0.2,
    optimizer="adamp",
    lr=LR,
    eps=1e-3,
    weight_decay=1e-5,
    gc=True,
    gc_conv_only=True,
    schedule="cosine",
    warmup_epochs=3,
    warmup_lr_ratio=1e-6 / LR,
    min_lr_ratio=1e-5 / LR,
    cooldown_epochs=10,
    epochs=60,
    batch_size=64,
    ema_decay=0.9999,
    smoothing=0.1,
    randaug_ops=2,
    randaug_magnitude=9,
    randaug_std=0.5,
    crop_min_area=0.08,
    hflip_prob=0.5,
    erasing_prob=0.2,
    erasing_mode="pixel",
    eval_crop=0.875,
    interpolation="bicubic",
    seed=42,
)


def space(trial: BaseTrial) -> TrialConfig:
    return RECIPE.replace(
        {
            "lr": trial.suggest_float("lr", LR / 4, LR * 2, log=True),
            "drop_rate": trial.suggest_float("drop_rate", 0.0, 0.5),
            "gc": trial.suggest_categorical("gc", [False, True]),
            "crop_min_area": trial.suggest_float("crop_min_area", 0.08, 0.9),
            "randaug_color": trial.suggest_categorical("randaug_color", [False, True]),
        }
    )
