"""A module of raymlc's, changed in every process that a test starts."""

from pathlib import Path
from textwrap import dedent, indent

import pytest

_HOOK = """
import importlib.abc, importlib.machinery, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "{module}":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def patched(module):
            execute(module)
{change}

        spec.loader.exec_module = patched
        return spec

sys.meta_path.insert(0, Finder())
"""


def patch_in_processes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, module: str, change: str
) -> None:
    """Run `change` when `module`, which it knows as `module`, is imported in a new process.

    folder: an empty one, for the file that Python runs when it starts.
    """
    text = _HOOK.format(module=module, change=indent(dedent(change), " " * 12))
    (folder / "sitecustomize.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
