"""The names of timm's models, known without the seconds that importing timm takes."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from raymlc.errors import UserError, did_you_mean


def check_backbone_name(name: str) -> None:
    """Refuse a misspelt backbone in milliseconds, by the text of timm's models, unimported.

    Raises UserError with near names. A name that passes may still be refused by `build_network`.
    """
    spec = importlib.util.find_spec("timm")
    if ":" in name or spec is None or spec.origin is None:
        return
    known = _names_in(Path(spec.origin).parent / "models")
    if known and name.partition(".")[0] not in known:
        raise UserError(unknown_backbone(name, known))


def unknown_backbone(name: str, known: Iterable[str]) -> str:
    """What is said of a name that is not among timm's."""
    way_out = did_you_mean(name, sorted(set(known)), "timm.list_models() names them all")
    return f"backbone must be a model of timm, but {name!r} is not; {way_out}"


@cache
def _names_in(models: Path) -> frozenset[str]:
    names: set[str] = set()
    for module in models.glob("*.py"):
        text = module.read_text(encoding="utf-8")
        names.update(re.findall(r"^@register_model\s+def (\w+)\(", text, re.M))
        # Names of earlier releases, each before the one that has taken its place.
        for block in re.findall(r"^register_model_deprecations\((.*?)^\}", text, re.M | re.S):
            names.update(re.findall(r"""['"](\w+)['"]\s*:""", block))
    return frozenset(names)
