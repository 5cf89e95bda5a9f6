"""Refuses, on a CPU, whatever would make a GPU's host wait."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

_WAITING = {
    "_local_scalar_dense", "bincount", "equal", "is_nonzero", "lift_fresh", "masked_select",
    "nonzero",
}  # fmt: skip


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses to read a tensor's values, and to copy a list to the device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        index = args[1] if name in ("index", "index_put_") else ()
        masked = any(part is not None and part.dtype == torch.bool for part in index)
        if name in _WAITING or masked:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting() -> Iterator[None]:
    """As NoWaiting; and the methods that read values without being dispatched are refused too."""
    with pytest.MonkeyPatch.context() as patch, NoWaiting():  # type: ignore[no-untyped-call]
        for name in ("item", "tolist", "numpy"):
            patch.setattr(torch.Tensor, name, _refuse)
        yield


def _refuse(*_: Any) -> None:
    raise AssertionError("waits for the device")
