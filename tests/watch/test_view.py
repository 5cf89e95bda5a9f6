"""What a sweep says while it runs: a view on a terminal, calm lines elsewhere."""

import errno
import fcntl
import io
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from raymlc.search.budget import Budget
from raymlc.search.study import Assignment, Row
from raymlc.trial import TrialConfig
from raymlc.watch import terminal, view
from raymlc.watch.standing import Standing, duration
from raymlc.watch.view import Lines

ROOT = Path(__file__).parents[2]
ACCURACY = "val/accuracy"
MAJORITY = {"shape": 0.25, "color": math.nan}


@pytest.fixture
def clock(
    clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> Callable[[float], None]:
    """The same, and the view does not look at it by itself."""
    monkeypatch.setattr(view, "_LOOKS", 3600.0)
    return clock


def epoch(number: int, score: float, **more: float) -> dict[str, float]:
    heads = {f"{ACCURACY}/shape": score, f"{ACCURACY}/color": score}
    return {"epoch": float(number), ACCURACY: score, "images_per_second": 1000.0} | heads | more


def row(number: int, state: str, epochs: int, score: float = math.nan, reason: str = "") -> Row:
    metrics = {} if math.isnan(score) else epoch(epochs, score)
    return Row(number, state, epochs, score, metrics, {}, reason, 1.0)


def begun(number: int, epochs: int = 8, behind: int = 0) -> Assignment:
    return Assignment(number, TrialConfig(epochs=epochs), behind)


def told(standing: Standing, *rows: Row) -> None:
    for one in rows:
        standing.start(begun(one.number))
        standing.end(one)


def test_trials_are_counted_by_what_became_of_them() -> None:
    standing = Standing(ACCURACY, 9, MAJORITY, [row(0, "COMPLETE", 8, 0.5), row(1, "HALTED", 2)])
    told(standing, row(2, "PAUSED", 1, 0.2), row(3, "PRUNED", 1, 0.1), row(4, "FAIL", 0))
    standing.start(begun(5))
    assert standing.counts_line() == (
        "1 running, 1 waiting at a rung, 1 stopped for now, 1 pruned, 1 done, 1 failed, 3 to come"
    )
    standing.start(begun(2, behind=1))  # promoted
    assert standing.counts_line().startswith("2 running, 1 stopped")
    assert standing.ended == 3


def test_the_best_is_of_any_epoch_so_far_with_each_heads_change_over_the_majority_class() -> None:
    standing = Standing(ACCURACY, 3, MAJORITY)
    assert standing.best_line() == "none yet"
    standing.start(begun(0))
    standing.start(begun(1))
    standing.epoch(0, epoch(1, 0.5))
    standing.epoch(1, epoch(1, 0.75))
    standing.epoch(1, epoch(2, 0.125))
    line = "val/accuracy 0.7500 of trial 1: shape 0.750 (+0.500), color 0.750"
    assert standing.best_line() == line
    standing.end(row(1, "FAIL", 2))
    assert standing.best_line() == line


def test_of_a_loss_the_least_is_the_best() -> None:
    standing = Standing("val/loss", 3, {})
    standing.start(begun(0))
    for number, loss in enumerate((2.0, 0.5, 1.0), 1):
        standing.epoch(0, {"epoch": number, "val/loss": loss, "images_per_second": 1.0})
    assert standing.best_line() == "val/loss 0.5000 of trial 0"


def test_the_heads_of_a_line_are_so_many_that_it_can_be_read() -> None:
    heads = {f"h{number}": 0.0 for number in range(30)}
    standing = Standing(ACCURACY, 1, heads)
    standing.start(begun(0))
    standing.epoch(0, {"epoch": 1, ACCURACY: 0.5} | {f"{ACCURACY}/{h}": 0.5 for h in heads})
    assert standing.best_line().endswith("h11 0.500 (+0.500), and 18 more")


def test_speed_is_of_all_running_trials_and_memory_of_the_largest() -> None:
    standing = Standing(ACCURACY, 3, {})
    assert standing.speed_line() == ""
    for number, memory in enumerate((3.25, 1.5)):
        standing.start(begun(number))
        standing.epoch(number, epoch(1, 0.5, gpu_memory_gib=memory))
    assert standing.speed_line() == "2,000 images/s, 3.2 GiB of GPU memory a trial"
    standing.end(row(0, "PAUSED", 1, 0.5))
    assert standing.speed_line() == "1,000 images/s, 1.5 GiB of GPU memory a trial"


def test_the_epochs_to_come_are_guessed_from_those_that_stopped_and_one_of_full_length(
    clock: Callable[[float], None],
) -> None:
    standing = Standing(ACCURACY, 10, {})
    assert math.isnan(standing.seconds_left())
    standing.start(begun(0))
    assert (standing.way().done, standing.way().total) == (0, 80)
    clock(10)
    standing.epoch(0, epoch(1, 0.5))
    standing.epoch(0, epoch(1, 0.5))  # told again
    assert (standing.way().done, standing.way().total) == (1, 80)
    standing.end(row(0, "PAUSED", 1, 0.5))
    told(standing, row(1, "PRUNED", 1, 0.1), row(2, "PRUNED", 2, 0.1))
    # (1 + 1 + 2 + 8) / 4 = 3 epochs each of the 7 to come.
    assert (standing.way().done, standing.way().total) == (4, 4 + 7 * 3)
    assert standing.way_line() == "4 of about 25 epochs, 10 s, about 52 s left"
    assert standing.seconds_left() == pytest.approx(7 * 3 * 10 / 4)


def test_of_a_sweep_that_goes_on_only_this_runs_epochs_are_timed(
    clock: Callable[[float], None],
) -> None:
    standing = Standing(ACCURACY, 3, {}, [row(0, "COMPLETE", 8, 0.5), row(1, "HALTED", 6)])
    standing.start(begun(1, behind=6))
    for number in range(1, 8):  # from its beginning again
        standing.epoch(1, epoch(number, 0.5))
    clock(4)
    assert standing.way_line() == "15 of about 24 epochs, 4 s, about 36 s left"


def test_the_bar_is_of_the_budget_where_there_is_one(clock: Callable[[float], None]) -> None:
    timed = Standing(ACCURACY, 10, {}, budget=Budget(seconds=7200))
    timed.start(begun(0))
    clock(180)
    assert timed.way_line() == "3 min 0 s of 2 h 0 min, about 1 h 57 min left"
    timed.epoch(0, epoch(7, 0.5))  # 73 more would take 31 minutes
    assert timed.way_line() == "3 min 0 s of 2 h 0 min, about 31 min 17 s left"
    counted = Standing(ACCURACY, 10, {}, budget=Budget(epochs=40))
    counted.start(begun(0))
    counted.epoch(0, epoch(1, 0.5))
    assert counted.way_line().startswith("1 of 40 epochs")


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (61, "1 min 1 s"), (7199.6, "2 h 0 min")]
)
def test_a_duration_is_said_as_people_say_it(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def drawn(width: int, heads: dict[str, float] = MAJORITY) -> tuple[Lines, io.StringIO]:
    """The lines of a sweep on a terminal, with two trials at work."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=width, height=24, color_system=None)
    lines = Lines(console, Standing(ACCURACY, 12, heads))
    for number in (0, 1):
        lines.start(begun(number), {"lr": 0.01})
        lines.epoch(number, epoch(1, 0.5 + number / 4, gpu_memory_gib=3.0))
    lines.end(row(0, "PAUSED", 1, 0.5))
    return lines, text


@pytest.fixture
def wide() -> Iterator[tuple[Lines, io.StringIO]]:
    lines, text = drawn(80)
    yield lines, text
    lines.close()


def shown(lines: Lines, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    with console.capture() as capture:
        console.print(lines._draw())
    return capture.get().splitlines()


def test_a_terminal_of_80_columns_shows_all_facts_on_few_lines(
    wide: tuple[Lines, io.StringIO],
) -> None:
    lines, text = wide
    view = [line.rstrip() for line in shown(lines, 80)]
    assert len(view) <= 8
    (bar,) = [line for line in view if "━" in line]
    assert bar.startswith("epochs ━")
    said = "\n".join(view)
    assert "trials 1 running, 1 waiting at a rung, 10 to come" in said
    assert "best   val/accuracy 0.7500 of trial 1: shape 0.750 (+0.500), color 0.750" in said
    assert "speed  1,000 images/s, 3.0 GiB of GPU memory a trial" in said
    assert "trial 1: epoch 1 of 8, val/accuracy 0.7500, 1,000 images/s" in said
    # Above it the lines, as they came.
    above = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", text.getvalue())
    assert "trial 0 starts, up to 8 epochs: lr=0.01\n" in above
    assert "trial 0 paused after 1 epoch: val/accuracy 0.5000 (shape 0.5, color 0.5)" in above


@pytest.mark.parametrize("width", [1, 5, 20])
def test_a_narrow_terminal_shows_what_fits(width: int) -> None:
    lines, text = drawn(width)
    lines._view.refresh()
    view = shown(lines, width)
    lines.close()
    assert all(len(line) <= max(width, 8) for line in view)
    if width == 20:
        assert "trials 1 running, 1" in view[1]
        assert "trial 1: epoch 1 of…" in view
    assert text.getvalue().endswith("\x1b[?25h") or "\x1b[?25h" in text.getvalue()  # the cursor


def test_the_view_is_redrawn_twice_a_second_and_costs_nothing_to_speak_of(
    wide: tuple[Lines, io.StringIO],
) -> None:
    lines, _ = wide
    assert lines._view.refresh_per_second == 2
    began = time.thread_time()
    for _ in range(20):
        lines._view.refresh()
    assert (time.thread_time() - began) / 20 < 0.05


def test_many_trials_that_come_and_go_while_it_is_drawn_do_not_disturb_it() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=24)
    lines = Lines(console, Standing(ACCURACY, 300, MAJORITY))
    lines._view._refresh_thread.refresh_per_second = 1000  # type: ignore[union-attr]
    for number in range(300):
        lines.start(begun(number), {})
        lines.epoch(number, epoch(1, number / 300))
        lines.end(row(number, "PRUNED", 1, number / 300))
    assert lines._view._refresh_thread is not None
    assert lines._view._refresh_thread.is_alive()
    lines.close()


def plain(trials: int) -> tuple[Lines, io.StringIO]:
    text = io.StringIO()
    return Lines(Console(file=text, width=140), Standing(ACCURACY, trials, MAJORITY)), text


def test_without_a_terminal_the_same_facts_are_lines_ever_less_often(
    clock: Callable[[float], None],
) -> None:
    lines, text = plain(4)
    lines.start(begun(0, 4000), {"lr": 0.01})
    said: list[int] = []
    for number in range(1, 3601):
        clock(1)
        lines.epoch(0, epoch(number, 0.5))
        said += [number] * (text.getvalue().count("\n") - 1 - len(said))
    assert said[:4] == [10, 25, 48, 82]
    assert said[-1] - said[-2] == 300
    assert len(said) < 20
    first = text.getvalue().splitlines()[1]
    assert first == (
        "10 of about 16000 epochs, 10 s, about 4 h 26 min left; 1 running, 3 to come;"
        " 1,000 images/s; best val/accuracy 0.5000 of trial 0: shape 0.500 (+0.250), color 0.500"
    )


def test_a_first_epoch_of_minutes_is_not_silent(
    clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "_LOOKS", 0.01)
    lines, text = plain(4)
    lines.start(begun(0), {})
    clock(9)
    time.sleep(0.1)
    assert text.getvalue().count("\n") == 1
    clock(2)
    deadline = time.perf_counter() + 10
    while text.getvalue().count("\n") < 2 and time.perf_counter() < deadline:
        time.sleep(0.01)
    lines.close()
    assert text.getvalue().splitlines()[1] == (
        "0 of about 32 epochs, 11 s; 1 running, 3 to come; best none yet"
    )
    clock(3600)
    time.sleep(0.1)
    assert text.getvalue().count("\n") == 2


def test_few_trials_have_a_line_each_when_they_start_and_end() -> None:
    lines, text = plain(50)
    lines.start(begun(3), {})
    lines.lost(3)
    lines.end(row(3, "COMPLETE", 8, 0.5))
    assert text.getvalue().splitlines() == [
        "trial 3 starts, up to 8 epochs: as given",
        "trial 3 lost its process, and goes on from its last epoch",
        "trial 3 complete after 8 epochs: val/accuracy 0.5000 (shape 0.5, color 0.5);"
        " best 0.5000 of trial 3; 1 of 50 trials, 0 s",
    ]


def test_of_a_thousand_trials_only_those_are_named_that_matter() -> None:
    lines, text = plain(1000)
    for number in range(1000):
        lines.start(begun(number), {})
        if number == 500:
            lines.end(row(number, "FAIL", 0, reason="the loss was not finite"))
        else:
            lines.end(row(number, "PRUNED", 1, {0: 0.1, 700: 0.9}.get(number, 0.05)))
    assert [re.match(r"trial \d+ \w+", line)[0] for line in text.getvalue().splitlines()] == [  # type: ignore[index]
        "trial 0 pruned",
        "trial 500 failed",
        "trial 700 pruned",
    ]


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_cannot_move_its_cursor_gets_lines(
    term: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    text = io.StringIO()
    lines = Lines(Console(file=text, force_terminal=True), Standing(ACCURACY, 4, MAJORITY))
    lines.start(begun(0), {})
    lines.close()
    assert text.getvalue() == "trial 0 starts, up to 8 epochs: as given\n"


def test_a_view_has_no_colour_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, color_system="truecolor", width=80)
    lines = Lines(console, Standing(ACCURACY, 4, MAJORITY))
    lines.start(begun(0), {})
    lines._view.refresh()
    lines.close()
    codes = re.findall(r"\x1b\[([\d;]*)m", text.getvalue())
    assert not [
        code for code in codes for part in code.split(";") if part and 30 <= int(part) < 108
    ]


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.ENOSPC])
def test_what_is_said_into_a_broken_file_is_lost_in_silence(number: int) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(number, os.strerror(number))

        def flush(self) -> None:
            raise OSError(number, os.strerror(number))

    console = Console(file=terminal._Lasting(Broken()), force_terminal=True)  # type: ignore[arg-type]
    lines = Lines(console, Standing(ACCURACY, 4, MAJORITY))
    lines.start(begun(0), {})
    lines._view.refresh()
    lines.close()


TALKS = """
import sys
from raymlc.watch.terminal import run_console
console = run_console()
for number in range(2_000):
    console.print("größe", number)
sys.stderr.write("done")
"""


def test_a_run_goes_on_when_nobody_reads_what_it_says() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TALKS], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    ) as process:  # fmt: skip
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == b"gr\\xf6\\xdfe 0\n"
        process.stdout.close()
        assert process.stderr.read() == b"done"
        assert process.wait() == 0


@pytest.mark.slow
def test_a_sweep_on_a_terminal_shows_its_view_and_ends_with_its_table(tmp_path: Path) -> None:
    child, terminal_fd = pty.fork()
    if child == 0:  # pragma: no cover
        os.chdir(ROOT)
        os.environ |= {"TERM": "xterm-256color", "NO_COLOR": "1"}
        os.environ.pop("COLUMNS", None)
        places = ["--output", str(tmp_path), "--cache", str(tmp_path / "cache"), "--name", "seen"]
        words = ["-m", "raymlc.tune", "--trials", "2", "--set", "epochs=2", *places]
        os.execv(sys.executable, [sys.executable, *words])
    fcntl.ioctl(terminal_fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    said = b""
    while True:
        try:
            part = os.read(terminal_fd, 65536)
        except OSError:  # Linux says so where the other side has closed
            break
        if not part:
            break
        said += part
    os.close(terminal_fd)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    text = said.decode()
    assert "━━" in text
    assert not re.search(r"\x1b\[[\d;]*3[0-7]m", text)
    plain_text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", text)
    assert re.search(r"trials 2 running", plain_text)
    assert re.search(r"best +val/accuracy 0\.\d+ of trial \d: shape 0\.\d+ \([+-]", plain_text)
    assert re.search(r"\d of (about )?\d epochs, .* left", plain_text)
    assert re.search(r"trial 0 starts, up to 2 epochs: lr=", plain_text)
    assert "best trial: " in plain_text.rpartition("epochs, ")[2]  # below the last view
    for noise in ("Traceback", "Warning", "(raylet)", "pid=", "INFO"):
        assert noise not in plain_text
