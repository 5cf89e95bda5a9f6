"""An actor between a trial's process and its workers; without imports, it starts sooner."""

from __future__ import annotations

import asyncio
from typing import Any

LOST = "lost"  # in place of an epoch's metrics, what Ray told of the last worker that was lost


class Mailbox:
    """Where a trial's process and its workers meet, trial after trial: one asks, the others tell.

    The trial that is given to the workers has a "number", counted here, besides what it is; they
    name it wherever they ask or tell, so that what is late belongs to no other trial.
    tries: losses of workers after which a trial has failed.
    """

    def __init__(self, tries: int) -> None:
        self._tries = tries
        self._trial: dict[str, Any] = {}
        self._number = 0
        self._over = True
        self._closed = False
        self._wanted = self._told = 0  # epochs
        self._items: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._micro_batch_size = 0  # of all workers, once one lacked memory
        self._lacks_memory = False
        self._losses = 0
        self._changed = asyncio.Condition()
        self._controller: asyncio.Future[Any] = asyncio.get_event_loop().create_future()

    async def begin(self, trial: dict[str, Any]) -> None:
        """Give the workers a trial; the one before must be over."""
        async with self._changed:
            self._number += 1
            self._trial, self._over = trial, False
            self._wanted = self._told = self._micro_batch_size = self._losses = 0
            self._items = asyncio.Queue()
            self._changed.notify_all()

    async def get(self, epoch: int) -> dict[str, Any]:
        """What is told of this epoch of the trial, or in place of it."""
        async with self._changed:
            self._wanted = epoch
            self._changed.notify_all()
        return await self._items.get()

    async def end(self) -> None:
        """The trial is over: no other epoch is wanted."""
        async with self._changed:
            self._over = True
            self._changed.notify_all()

    async def close(self) -> None:
        """There will be no other trial."""
        async with self._changed:
            self._over = self._closed = True
            self._changed.notify_all()

    async def trial(self, done: int) -> dict[str, Any] | None:
        """The trial to train, once there is one of a number above `done`; None at the end.

        Besides what it is: its "number"; the first "epoch" to tell, later than 1 after a restart;
        the "micro_batch_size" where memory did not do, else 0.
        """
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._closed or (self._number > done and not self._over)
            )
        if self._closed:
            return None
        extra = {"epoch": max(self._wanted, 1), "micro_batch_size": self._micro_batch_size}
        return {**self._trial, "number": self._number, **extra}

    async def is_wanted(self, number: int, epoch: int) -> bool:
        """Whether to train this epoch: waits until it is asked for, or the trial is over."""

        def over() -> bool:
            return self._over or self._number != number

        async with self._changed:
            await self._changed.wait_for(lambda: over() or self._wanted >= epoch)
        return not over()

    async def put(self, item: dict[str, Any], number: int | None = None) -> None:
        """Tell of an epoch of the trial of that number; by default, of the present one."""
        epoch = item.get("epoch", self._told + 1)
        if number in (None, self._number) and not self._over and epoch > self._told:
            self._told = epoch
            self._items.put_nowait(item)

    async def lack_memory(self, micro_batch_size: int) -> None:
        """The workers will be restarted, with so many images at a time if those are fewer."""
        if micro_batch_size < self._micro_batch_size or self._micro_batch_size == 0:
            self._lacks_memory = True
            self._micro_batch_size = micro_batch_size

    async def lose(self, told: str) -> None:
        """Workers were lost, and will be restarted. told: what Ray says of it."""
        if self._lacks_memory:
            self._lacks_memory = False
            return
        self._losses += 1
        if self._losses == self._tries:
            await self.put({LOST: told})
            await self.end()

    async def hand_over(self, controller: Any) -> None:
        """Keep the handle of the trainer's controller."""
        if not self._controller.done():
            self._controller.set_result(controller)

    async def controller(self) -> Any:
        """That handle, once it is there."""
        return await self._controller
