"""raymlc: hyperparameter search for multi-label image classifiers.

from raymlc import load

model = load("runs/NAME/trials/0005/best")
answers = model(["shirt.jpg"])[0]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raymlc.training.prediction import load_predictor as load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import, so only for those who ask for what needs it.
    if name == "load":
        from raymlc.training.prediction import load_predictor

        return load_predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
