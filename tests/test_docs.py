"""The words of README and docs: links lead somewhere, and commands do what they are shown for.

Every command of a page is run, in the page's order, or stands in NOT_RUN with what it would need.
"""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from raymlc.data.demo import draw_demo
from raymlc.errors import UserError
from raymlc.search.space import check_space, load_space
from raymlc.trial import parse_assignment
from tests.test_commands import COMMANDS, options_in_help

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = [README, *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [*DOCS, ROOT / "CHANGELOG.md"]
LINK = re.compile(r"\]\(\s*([^)\s]+)\s*\)")
OURS = re.compile(r"(?:(?:\.venv/bin/)?python -m raymlc\.|raymlc-)(\w+)(?: (.*))?")
PROGRAM = re.compile(
    r"(\.venv/bin/)?(git|kubectl|optuna-dashboard|pip|pytest|python3?|ray|raymlc-\w+|ssh) "
)

# Each command that is not run, by what it would need. Those of raymlc's are checked for their
# options all the same.
NOT_RUN = {
    "a package index; CI begins by the last one": (
        "git clone <this repository> raymlc && cd raymlc",
        "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/python -m raymlc.tune",
        "pip install '.[dashboard]'",
        "pip install '.[opencv]'",
        "pip install '.[cluster]' boto3",
        "python3 -m venv .venv && .venv/bin/pip install '.[test]' && .venv/bin/python -m pytest"
        " -n 2 --dist loadfile",
    ),
    "itself": ('pytest -m "not slow"',),
    "the product photos, an hour, and weights that are not in the repository": (
        ".venv/bin/python -m raymlc.tune --data PART --trials 10 --weights lite0.safetensors"
        " --name sweep --set backbone=tf_efficientnet_lite0 image_size=64 epochs=6",
        ".venv/bin/python -m raymlc.train --data DIR --trial runs/sweep/trials/0002/best"
        " --name winner --weights lite0.safetensors --set epochs=8",
    ),
    "a database; test_storage has some": (
        ".venv/bin/python -m raymlc.tune --data DIR --study postgresql://me@host/database",
    ),
    "a browser that looks at it, until Ctrl-C": (
        "optuna-dashboard runs/NAME/study.journal",
    ),
    "minutes, or photos: benchmarks": (
        "python -m tests.benchmarks.search.regret --curves DIR --results FILE",
        "python -m tests.benchmarks.search.regret --curves DIR --results regret.jsonl",
        "python tests/benchmarks/input.py --data DIR",
        "python tests/benchmarks/feed.py",
        "python tests/benchmarks/start.py --data DIR",
        "python tests/benchmarks/gc_place.py",
        "python tests/benchmarks/memory.py",
        "python tests/benchmarks/packing.py",
        "python tests/benchmarks/adamp.py",
        "python -m tests.benchmarks.search.cost",
    ),
    "a cloud, or hosts": (
        "ray get-auth-token --generate",
        "ray up cluster.yaml && ray dashboard cluster.yaml",
        "ray up cluster.yaml",
        "ray dashboard cluster.yaml",
        "ray attach -p 8265 cluster.yaml",
        "ssh -L 8265:127.0.0.1:8265 HEAD",
        "ray rsync-up cluster.yaml DIR/ /shared/data/",
        "ray rsync-down cluster.yaml /shared/runs/ runs/",
        "ray down cluster.yaml",
        "ray job submit --address http://127.0.0.1:8265 --working-dir . -- python -m raymlc.tune"
        " --address auto --data /shared/data --output /shared/runs --trials 64 --concurrency 4"
        " --gpus-per-worker 1",
        "ray job submit --address http://127.0.0.1:8265 --working-dir . -- python -m raymlc.tune"
        " --address auto --data /shared/data --output /shared/runs --name big --trials 64"
        " --concurrency 4 --gpus-per-worker 1 --cpus-per-worker 3",
        "ray job submit --address http://127.0.0.1:8265 --working-dir . -- python -m raymlc.tune"
        " --address auto --output /shared/runs --name big --resume",
        "kubectl create -f docs/kuberay.yaml",
    ),
    "port 8265; test_job does the same on a free one": (
        "ray start --head --dashboard-host=127.0.0.1",
        "ray job submit --address http://127.0.0.1:8265 --working-dir . -- python -m raymlc.tune"
        ' --address auto --output "$PWD/runs" --trials 4',
        "ray stop",
    ),
    "values for its words in capitals": (
        "python -m raymlc.train --data DATA --workers N",
        "python -m raymlc.export CHECKPOINT --output FILE.onnx",
    ),
}  # fmt: skip

# Sweeps that are run from end to end, with so many trials; the others are begun: all that comes
# before the first trial is done, from the options to the study.
SWEPT = {
    "python -m raymlc.tune --data DIR --trials 8 --name first --set epochs=3 image_size=128": "2",
    ".venv/bin/python -m raymlc.tune --name NAME --resume --trials +20 --space wider.py": "+1",
}
# What is set over the fields of every new sweep and training, to make it small.
SMALL = (
    "backbone=test_efficientnet", "pretrained=false", "image_size=32", "epochs=2",
    "warmup_epochs=0", "cooldown_epochs=0",
)  # fmt: skip
FIRST = next(iter(SWEPT))


def heading_ids(text: str) -> set[str]:
    """The anchors that headings get where Markdown is shown."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of code of a page in one language, in its order."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands(page: Path) -> list[str]:
    """Each line of a page's shell blocks, and what stands between backticks and runs a program.

    In the page's order, the blocks first. Without comments; a line that goes on is one.
    """
    text = page.read_text(encoding="utf-8")
    lines = [
        re.sub(r"\s+# .*", "", line)
        for block in blocks(page, "sh")
        for line in re.sub(r"\\\n\s*", "", block).splitlines()
    ]
    inline = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    words = [" ".join(code.split()) for code in inline]
    return lines + [code for code in words if PROGRAM.match(code) and is_whole(code)]


def is_whole(code: str) -> bool:
    """Whether code in a sentence is a command, not a pattern or a program's name."""
    bare = re.fullmatch(r"python -m raymlc\.\w+|ray (\w+|job \w+)", code)
    return "…" not in code and not bare


def to_run(page: Path) -> list[str]:
    """The commands of a page that are not in NOT_RUN."""
    named = {command for some in NOT_RUN.values() for command in some}
    return [command for command in commands(page) if command not in named]


def is_setting(command: str) -> re.Match[str] | None:
    """A line that gives a name its value: [1] the name and [2] the value."""
    return re.fullmatch(r"(?:export )?([A-Z_]+)=(\S+)", command)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_within_the_project_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in heading_ids(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_command_on_a_page_exists_and_has_the_options_that_it_is_given(page: Path) -> None:
    text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
    for module, rest in re.findall(r"python -m ((?:raymlc|tests)[\w.]+)([^\n`]*)", text):
        name = module.removeprefix("raymlc.")
        if name in COMMANDS:
            assert options_in_help(rest.partition("#")[0]) <= COMMANDS[name][1], rest
        else:
            importlib.import_module(module)


def test_every_command_of_a_page_is_run_or_has_a_reason_why_it_is_not() -> None:
    named = [command for some in NOT_RUN.values() for command in some]
    assert len(named) == len(set(named))
    found = {command for page in DOCS for command in commands(page)}
    assert set(named) | set(SWEPT) <= found, "a command that no page has any more"
    for command in {command for page in DOCS for command in to_run(page)}:
        ours = OURS.fullmatch(command)
        assert is_setting(command) or (ours and ours[1] in COMMANDS), command


@pytest.mark.parametrize("page", [README, ROOT / "docs" / "search-space.md"], ids=lambda p: p.name)
def test_the_search_space_of_a_page_passes_the_check(page: Path, tmp_path: Path) -> None:
    (tmp_path / "my_space.py").write_text(space_of(page))
    assert len(set(check_space(load_space(tmp_path / "my_space.py", {})))) > 20


def test_each_mistake_in_a_space_gets_the_line_that_the_page_has(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "search-space.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(TrialConfig.*?)`(?: and `--set (\S+)`)? \| `+(.*?)`+ \|$", page, re.M)
    assert len(rows) == page.count("| `TrialConfig(")
    head, _, _ = space_of(README).partition("    return")
    for code, setting, line in rows:
        path = tmp_path / "my_space.py"
        path.write_text(f"{head}    return {code}\n")
        with pytest.raises(UserError) as refused:
            check_space(load_space(path, dict([parse_assignment(setting)] if setting else [])))
        assert str(refused.value) == line


def space_of(page: Path) -> str:
    """The search space that a page shows."""
    (space,) = (block for block in blocks(page, "python") if "def space(" in block)
    return space


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted: DIR, photos/, and the sweeps `first`, NAME and OTHER."""
    base = tmp_path_factory.mktemp("pages")
    draw_demo(base / "DIR", rows=160)
    (base / "DIR" / "demo.json").unlink()
    for name in ("train", "val"):
        path = base / "DIR" / f"{name}.csv"
        _, *rows = path.read_text().splitlines()
        header = "image_path,gender,color,article"
        path.write_text("\n".join([header, *rows]) + "\n")
    path.with_name("test.csv").write_text("\n".join([header, *rows[:12]]) + "\n")
    path.write_text("\n".join([header, *rows[12:]]) + "\n")
    photos = base / "photos"
    photos.mkdir()
    for picture in sorted((base / "DIR" / "images").iterdir())[:3]:
        shutil.copy(picture, photos)
    shutil.copy(picture, base / "shirt.jpg")
    (base / "search_spaces").symlink_to(ROOT / "search_spaces")
    (base / "wider.py").write_text(space_of(README).replace("1e-2", "3e-2"))

    sweep(base, FIRST)
    trials = base / "runs" / "first" / "trials"
    (best,) = [folder for folder in trials.iterdir() if (folder / "best" / "README.md").is_file()]
    shutil.copy(best / "best" / "trial.json", base)
    for number in {"0000", "0003"} - {best.name}:  # those that the pages call the best
        shutil.copytree(best, trials / number, dirs_exist_ok=True)
    for name in ("NAME", "OTHER"):
        shutil.copytree(base / "runs" / "first", base / "runs" / name)
    shutil.move(base / "runs" / "first", base / "first")
    return base


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in DOCS if to_run(page)], ids=lambda p: p.name)
def test_the_commands_of_a_page_do_what_they_are_shown_for(
    page: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    shutil.copytree(base, place, symlinks=True)
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(place))  # where decoded images are kept
    for space in blocks(page, "python"):
        if "def space(" in space:
            (place / "my_space.py").write_text(space)
    values: dict[str, str] = {}
    for command in to_run(page):
        setting = is_setting(command)
        if setting:
            values[setting[1]] = setting[2]
        elif command == FIRST:
            shutil.move("first", "runs/first")  # it ran for all pages
        elif command in SWEPT:
            sweep(place, command)
        else:
            run(command, values)
    for block in blocks(page, "python"):
        if "load(" in block:
            exec(block)


def sweep(place: Path, command: str) -> None:
    """Run a sweep of SWEPT as a process of its own."""
    words = words_of(command)
    words[words.index("--trials") + 1] = SWEPT[command]
    done = subprocess.run(
        [sys.executable, "-m", "raymlc.tune", *words], cwd=place, capture_output=True, text=True,
        env=os.environ | {"HOME": str(place), "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def run(command: str, values: dict[str, str]) -> None:
    """Run one of raymlc's commands in this process; a sweep up to its first trial."""
    ours = OURS.fullmatch(command)
    assert ours, command
    for name, value in values.items():
        command = command.replace(f"${name}", value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raymlc.cluster.launch.launch", lambda *_: 0)
        try:
            code = COMMANDS[ours[1]][0](words_of(command))
        except SystemExit as end:  # of what only prints, such as --tyro-print-completion
            code = 0 if end.code is None else int(end.code)
    assert code == 0, command


def words_of(command: str) -> list[str]:
    """The words after a command's name, of a new sweep or training with SMALL, and a --name."""
    ours = OURS.fullmatch(command)
    assert ours
    words = shlex.split(ours[2] or "")
    if ours[1] in ("tune", "train") and "--data" in words:
        if "--name" not in words:
            words += ["--name", f"run{len(list(Path('runs').glob('*')))}"]
        if "--set" not in words:
            words.append("--set")
        end = words.index("--set") + 1
        while end < len(words) and "=" in words[end]:
            end += 1
        words[end:end] = SMALL
    return words
