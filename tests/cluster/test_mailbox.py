"""What is asked and told between a trial's process and its workers reaches the right trial."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from raymlc.cluster.mailbox import LOST, Mailbox

Result = TypeVar("Result")
Play = Callable[[Mailbox], Awaitable[Any]]


def played(play: Play, tries: int = 3) -> Any:
    """What comes of a play with a new mailbox."""

    async def run() -> Any:
        return await asyncio.wait_for(play(Mailbox(tries)), 10)

    return asyncio.run(run())


async def waits(asked: Awaitable[Result]) -> asyncio.Task[Result]:
    """A question that is not answered yet."""
    task = asyncio.ensure_future(asked)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    return task


def test_an_epoch_is_trained_once_it_is_asked_for() -> None:
    async def play(mailbox: Mailbox) -> None:
        await mailbox.begin({"folder": "a"})
        wanted = await waits(mailbox.is_wanted(1, 1))
        got = await waits(mailbox.get(1))
        assert await wanted
        await mailbox.put({"epoch": 1.0}, 1)
        assert await got == {"epoch": 1.0}
        later = await waits(mailbox.is_wanted(1, 2))
        await mailbox.end()
        assert not await later

    played(play)


def test_workers_wait_for_the_next_trial_and_get_each_once() -> None:
    async def play(mailbox: Mailbox) -> None:
        first = await waits(mailbox.trial(0))
        await mailbox.begin({"folder": "a"})
        assert await first == {"folder": "a", "number": 1, "epoch": 1, "micro_batch_size": 0}
        again = await waits(mailbox.trial(1))
        await mailbox.end()
        await mailbox.begin({"folder": "b"})
        assert (await again or {})["folder"] == "b"
        assert not await mailbox.is_wanted(1, 1), "the trial before is over"
        at_the_end = await waits(mailbox.trial(2))
        await mailbox.close()
        assert await at_the_end is None

    played(play)


@pytest.mark.parametrize(
    ("item", "number"),
    [({"epoch": 1.0, "late": 1}, 1), ({"failure": "late"}, 1), ({"epoch": 1.0, "again": 1}, 2)],
    ids=["epoch of another trial", "failure of another trial", "epoch told before"],
)
def test_what_comes_too_late_is_dropped(item: dict[str, Any], number: int) -> None:
    async def play(mailbox: Mailbox) -> None:
        await mailbox.begin({"folder": "a"})
        await mailbox.end()
        await mailbox.begin({"folder": "b"})
        first = asyncio.ensure_future(mailbox.get(1))
        await mailbox.put({"epoch": 1.0}, 2)
        await first
        await mailbox.put(item, number)
        await mailbox.put({"epoch": 2.0}, 2)
        assert await mailbox.get(2) == {"epoch": 2.0}

    played(play)


def test_a_worker_that_comes_back_goes_on_with_the_epoch_that_is_wanted() -> None:
    async def play(mailbox: Mailbox) -> None:
        await mailbox.begin({"folder": "a"})
        await waits(mailbox.get(1))
        await mailbox.put({"epoch": 1.0}, 1)
        await waits(mailbox.get(2))
        await mailbox.lose("killed")
        trial = await mailbox.trial(0) or {}
        assert (trial["number"], trial["epoch"]) == (1, 2)

    played(play)


def test_a_trial_that_lost_workers_too_often_is_over_and_the_next_one_has_all_its_tries() -> None:
    async def play(mailbox: Mailbox) -> None:
        for folder in "ab":
            await mailbox.begin({"folder": folder})
            got = await waits(mailbox.get(1))
            await mailbox.lose("first")
            assert not got.done()
            await mailbox.lose("second")
            assert await got == {LOST: "second"}
            await waits(mailbox.trial(0))

    played(play, tries=2)


@pytest.mark.parametrize(
    ("sizes", "losses"),
    [([8, 8], 0), ([8, None, 4], 0), ([8, None, 8], 1), ([2, None, 2, None, 2], 2)],
    ids=["two workers at once", "less again", "no less", "never less than two"],
)
def test_lack_of_memory_is_no_loss_while_there_is_less_to_try(
    sizes: list[int | None], losses: int
) -> None:
    async def play(mailbox: Mailbox) -> dict[str, Any]:
        await mailbox.begin({"folder": "a"})
        await waits(mailbox.get(1))
        for size in [*sizes, None]:  # None: they are restarted
            await (mailbox.lose("restarted") if size is None else mailbox.lack_memory(size))
        for _ in range(2 - losses):
            await mailbox.lose("killed")
        trial = await mailbox.trial(0)
        assert trial is not None, "it goes on"
        await mailbox.lose("killed")
        await waits(mailbox.trial(0))
        return trial

    assert played(play)["micro_batch_size"] == min(filter(None, sizes))
