"""What Ray reads from the environment when it is imported, and so must be there before."""

from __future__ import annotations

import os
import secrets


def prepare_environment(own_ray: bool) -> None:
    """Set what a sweep needs of Ray; what the user has set stays. Call it before importing Ray.

    own_ray: the sweep starts a Ray of its own, instead of joining a cluster.
    """
    wanted = {
        # The study, the event files and the table say all that Tune's own loggers would.
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        # Ctrl-C ends the sweep at once: every epoch is on disk already.
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        # How long an epoch's report waits to be seen, in seconds; it would be 2.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
        # A trial goes on from its last epoch wherever it was: an actor a trial that waits for word
        # that its node will go, and meters of each worker, would only delay its start.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        # Tune's newer terminal output draws a box a trial however quiet it is asked to be.
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    if own_ray:
        # A token of this process alone: one in the user's home, which Ray would write, makes the
        # next `ray start` of theirs ask for it.
        wanted |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
