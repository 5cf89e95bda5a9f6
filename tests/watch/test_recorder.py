"""A Ctrl-C, or a SIGTERM in its stead, waits for what must not be left half done."""

import os
import signal

import pytest

from raymlc.watch.recorder import terminable, unbroken


def test_ctrl_c_waits_until_the_block_is_done() -> None:
    done = []

    def interrupted() -> None:
        with unbroken():
            os.kill(os.getpid(), signal.SIGINT)
            done.append(True)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert done
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with unbroken():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_sigterm_is_a_ctrl_c_and_waits_until_the_block_is_done() -> None:
    done = []

    def terminated() -> None:
        with terminable(), unbroken():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append(True)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        terminated()
    assert done
    assert signal.getsignal(signal.SIGTERM) is before
