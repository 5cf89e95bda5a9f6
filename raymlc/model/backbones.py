"""The names of timm's models, known without the seconds that importing timm takes."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path

from raymlc.errors import UserError, did_you_mean


def check_backbone_name(name: str) -> None:
    """Refuse a misspelt backbone in milliseconds, by the text of timm's models, unimported.

    Raises UserError with near names. A name that passes may still be refused by `build_network`.
    """
    spec = importlib.util.find_spec("timm")
    if ":" in name or spec is None or spec.origin is None:
        return
    known: set[str] = set()
    for module in (Path(spec.origin).parent / "models").glob("*.py"):
        text = module.read_text(encoding="utf-8")
        known.update(re.findall(r"^@register_model\s+def (\w+)\(", text, re.MULTILINE))
        known.update(re.findall(r"^\s+['\"](\w+)['\"]: ['\"]\w+(?:\.\w+)?['\"],", text, re.MULTILINE))
    if known and name.partition(".")[0] not in known:
        raise UserError(unknown_backbone(name, known))




def unknown_backbone(name: str, known: Iterable[str]) -> str:
    """What is said of a name that is not among timm's."""
    way_out = did_you_mean(name, sorted(set(known)), "timm.list_models() names them all")
    return f"backbone must be a model of timm, but {name!r} is not; {way_out}"
