"""An actor between a trial's process and its workers; without imports, it starts sooner."""

from __future__ import annotations

import asyncio
from typing import Any

NOTHING = -1  # in place of a wanted epoch, where the trial has failed
LOST = "lost"  # in place of an epoch's metrics, what Ray told of the last worker that was lost


class Mailbox:
    """Where the trial's process and its rank-0 worker meet: one asks, the other tells.

    tries: losses of workers after which the trial has failed.
    """

    def __init__(self, tries: int) -> None:
        self._tries = tries
        self._items: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._wanted = 0
        self._micro_batch_size = 0  # of all workers, once one lacked memory
        self._lacks_memory = False
        self._losses = 0
        self._asked = asyncio.Condition()
        self._controller: asyncio.Future[Any] = asyncio.get_event_loop().create_future()

    async def get(self, epoch: int) -> dict[str, Any]:
        async with self._asked:
            self._wanted = epoch
            self._asked.notify_all()
        return await self._items.get()

    async def put(self, item: dict[str, Any]) -> None:
        self._items.put_nowait(item)

    async def wanted(self) -> int:
        return self._wanted

    async def wait_until_wanted(self, epoch: int) -> None:
        async with self._asked:
            await self._asked.wait_for(lambda: self._wanted >= epoch)

    async def lack_memory(self, micro_batch_size: int) -> None:
        self._micro_batch_size = micro_batch_size
        self._lacks_memory = True

    async def lose(self, told: str) -> None:
        if self._lacks_memory:
            self._lacks_memory = False
            return
        self._losses += 1
        if self._losses == self._tries:
            self._wanted = NOTHING
            self._items.put_nowait({LOST: told})

    async def micro_batch_size(self) -> int:
        return self._micro_batch_size

    async def hand_over(self, controller: Any) -> None:
        if not self._controller.done():
            self._controller.set_result(controller)

    async def controller(self) -> Any:
        return await self._controller
