"""cluster.yaml in its two variants, AWS and own hosts: what Ray's launcher and bash say of it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from ray.autoscaler._private.util import prepare_config, validate_config

from raymlc.begin import STUDY_VARIABLE
from raymlc.cluster.probe import versions

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VARIANTS = ("AWS", "own hosts")


def section(name: str) -> str:
    """The lines between the two marks of `name`."""
    _, after = TEXT.split(f"# ---- {name}: begin\n")
    between, _ = after.split(f"# ---- {name}: end\n")
    return between


def variant(name: str) -> str:
    """cluster.yaml as it stands, or after the change to own hosts that it describes."""
    if name == "AWS":
        return TEXT
    own_hosts = section("own hosts")
    uncommented = "".join(
        line[2:] if line.startswith("# ") else line.removeprefix("#")
        for line in own_hosts.splitlines(keepends=True)
    )
    return TEXT.replace(section("AWS"), "").replace(own_hosts, uncommented)


def prepared(name: str) -> dict[str, Any]:
    """What `ray up` makes of the file before it asks the provider anything."""
    config: dict[str, Any] = prepare_config(yaml.safe_load(variant(name)))
    return config


def commands(config: dict[str, Any]) -> list[str]:
    """Every shell command that Ray runs on some node."""
    return [
        command for key, value in config.items() if key.endswith("_commands") for command in value
    ]


def command_with(word: str, config: dict[str, Any]) -> str:
    [command] = {command for command in commands(config) if word in command}
    return command


@pytest.mark.parametrize("name", VARIANTS)
def test_ray_accepts_the_file_by_its_own_schema(name: str) -> None:
    validate_config(prepared(name))


@pytest.mark.parametrize("name", VARIANTS)
def test_each_variant_launches_where_it_says(name: str) -> None:
    config = prepared(name)
    node_types = config["available_node_types"]
    if name == "AWS":
        assert config["provider"]["type"] == "aws"
        assert node_types["head"]["resources"] == {"CPU": 0}
        limits = {key: node_types["gpu_worker"][key] for key in ("min_workers", "max_workers")}
        assert limits == {"min_workers": 0, "max_workers": 4}
    else:
        assert config["provider"]["type"] == "local"
        hosts = len(config["provider"]["worker_ips"])
        [limits] = node_types.values()
        assert limits["min_workers"] == limits["max_workers"] == config["max_workers"] == hosts


@pytest.mark.parametrize("name", VARIANTS)
def test_every_command_is_correct_bash(name: str) -> None:
    found = commands(prepared(name))
    assert len(found) > 10
    for command in found:
        checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
        assert checked.returncode == 0, f"{command}\n{checked.stderr}"


@pytest.mark.parametrize("name", VARIANTS)
def test_both_kinds_of_node_run_the_common_setup_and_the_shared_folder_comes_first(
    name: str,
) -> None:
    config = prepared(name)
    common = yaml.safe_load(variant(name))["setup_commands"]
    assert common[0] == config["metadata"]["shared"]
    assert "/shared" in common[0]
    for kind in ("head", "worker"):
        assert config[f"{kind}_setup_commands"][: len(common)] == common


def test_own_hosts_differ_in_the_start_of_the_head_by_the_autoscaler_alone() -> None:
    aws = command_with("--head", prepared("AWS"))
    own_hosts = aws.replace("ray start", "RAY_enable_autoscaler_v2=0 ray start")
    assert command_with("--head", prepared("own hosts")) == own_hosts


@pytest.mark.parametrize("name", VARIANTS)
def test_the_dashboard_listens_on_loopback_alone(name: str) -> None:
    hosts = re.findall(r"--dashboard-host[= ](\S+)", command_with("--head", prepared(name)))
    assert hosts == ["127.0.0.1"]


@pytest.mark.parametrize("name", VARIANTS)
def test_ray_starts_with_more_open_files_allowed(name: str) -> None:
    starts = [command for command in commands(prepared(name)) if "ray start" in command]
    assert len(starts) == 2
    assert all(command.startswith("ulimit -n 65536; ") for command in starts)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_token_goes_to_every_node_and_the_runs_to_none(name: str) -> None:
    config = prepared(name)
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token", "~/raymlc": "."}
    assert {"/runs", ".venv", ".git"} <= set(config["rsync_exclude"])


def test_shells_of_a_node_know_the_mode_of_the_token_and_the_python_of_raymlc(
    tmp_path: Path,
) -> None:
    command = command_with(".bashrc", prepared("AWS"))
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}

    def bash(script: str) -> str:
        done = subprocess.run(
            ["bash", "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    bash(command)
    bash(command)
    lines = (tmp_path / ".bashrc").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(set(lines)) == 2, "a second `ray up` must not add the lines again"
    mode, path = bash('source ~/.bashrc; echo "$RAY_AUTH_MODE"; echo "$PATH"').splitlines()
    assert mode == "token"
    assert path.split(":")[0] == f"{tmp_path}/venv/bin"
    for other in ("uv venv", "uv pip install"):
        assert "~/venv" in command_with(other, prepared("own hosts"))


def test_the_ray_of_the_nodes_is_one_that_the_project_allows_and_is_tested_with() -> None:
    [pinned] = {Version(number) for number in re.findall(r"\bray==([\w.]+)", TEXT)}
    cluster = PROJECT["optional-dependencies"]["cluster"]
    requirements = [Requirement(line) for line in [*PROJECT["dependencies"], *cluster]]
    of_ray = [requirement for requirement in requirements if requirement.name == "ray"]
    assert set().union(*(requirement.extras for requirement in of_ray)) >= {
        "default",
        "train",
        "tune",
    }
    assert all(pinned in requirement.specifier for requirement in of_ray)
    assert pinned.release[:2] == Version(ray.__version__).release[:2]
    assert "'.[cluster,postgresql]'" in command_with("ray==", prepared("AWS"))


def test_what_the_nodes_must_share_is_pinned_to_what_the_project_allows() -> None:
    install = command_with("ray==", prepared("AWS"))
    pins = dict(re.findall(r" ([a-z]+)==([\w.]+)", install))
    allowed = {
        requirement.name: requirement.specifier
        for requirement in map(Requirement, PROJECT["dependencies"])
    }
    assert pins.keys() == {"ray", "torch", "torchvision", "timm", "optuna"}
    for name, version in pins.items():
        assert Version(version) in allowed[name], name
    assert set(versions()) - {"python", "raymlc"} <= pins.keys(), "what a sweep compares is pinned"


@pytest.mark.slow
def test_the_setup_of_a_node_runs_in_an_empty_home_as_far_as_its_downloads(tmp_path: Path) -> None:
    config = prepared("own hosts")
    setup = yaml.safe_load(variant("own hosts"))["setup_commands"]
    [number] = re.findall(r"astral\.sh/uv/([\d.]+)/install\.sh", TEXT)
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("token")
    (home / "raymlc").symlink_to(ROOT)
    # The same uv, from the index that tests are installed from.
    uv = tmp_path / "uv"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*pip, uv, f"uv=={number}"], check=True)
    environment = {
        name: value for name, value in os.environ.items() if name not in ("BASH_ENV", "VIRTUAL_ENV")
    } | {"HOME": str(home), "PATH": f"{uv}/bin:{os.environ['PATH']}"}

    def bash(command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", f"touch ~/.bashrc; source ~/.bashrc; {command}"],
            env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    [python] = re.findall(r"--python (\d[\w.]*)", TEXT)
    offered = bash("uv python list --all-versions --only-downloads 3.11")
    assert f"cpython-{python}-linux" in offered, "that uv can install the Python of the nodes"

    left_out = ("install.sh", config["metadata"]["shared"])
    ran = [command for command in setup if not any(part in command for part in left_out)]
    assert len(ran) == len(setup) - 2 == 4
    for command in ran:
        here = command.replace(f"--python {python}", f"--python {sys.executable}")
        said = bash(here.replace("uv pip install", "uv pip install --dry-run"))
    assert (home / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
    installed = set(re.findall(r"^ \+ (\S+)==", said, flags=re.MULTILINE))
    assert {"ray", "torch", "torchvision", "timm", "optuna", "psycopg"} <= installed
    assert " + raymlc @ file://" in said


def test_the_python_of_the_nodes_is_pinned_to_the_patch_and_one_that_the_project_allows() -> None:
    [pinned] = {Version(number) for number in re.findall(r"--python (\d[\w.]*)", TEXT)}
    assert len(pinned.release) == 3
    assert pinned.release[:2] == (3, 11)
    assert pinned in SpecifierSet(PROJECT["requires-python"])


def test_what_the_user_must_fill_in_stands_in_one_place() -> None:
    rule = "=" * 32
    _, to_fill_in, _ = re.split(rf"  # {rule}.*\n", section("AWS"))
    assert to_fill_in.count("-FILL-IN") == TEXT.count("-FILL-IN") == 2
    assert list(yaml.safe_load(to_fill_in)) == ["region", "image", "shared"]
    assert "us-west" not in TEXT.replace(to_fill_in, ""), "another region is filled in there alone"


def test_the_job_at_the_top_reads_and_writes_in_the_shared_folder() -> None:
    [job] = re.findall(r"^#\s+(python -m raymlc\.tune (?:.*\\\n)*.*)$", TEXT, flags=re.MULTILINE)
    words = re.sub(r"\\\n#", "", job).split()
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert options["--address"] == "auto"
    assert options["--data"].startswith("/shared/")
    assert options["--output"].startswith("/shared/")
    assert float(options["--gpus-per-worker"]) > 0, "an idle cluster has no GPU to be found"
    assert int(options["--concurrency"]) > 0


def test_the_job_of_kuberay_has_its_required_fields_and_runs_the_same_command() -> None:
    text = (ROOT / "docs" / "kuberay.yaml").read_text(encoding="utf-8")
    job = yaml.safe_load(text)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    head, [workers] = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert workers.keys() >= {"groupName", "minReplicas", "maxReplicas", "template"}
    assert workers["minReplicas"] == 0 < workers["maxReplicas"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["authOptions"] == {"mode": "token"}
    assert head["rayStartParams"]["num-cpus"] == "0", "no trial on the head"
    for group in (head, workers):
        pod = group["template"]["spec"]
        [container] = pod["containers"]
        assert container["image"] == "FILL-IN"
        assert [(mount["name"], mount["mountPath"]) for mount in container["volumeMounts"]] == [
            (volume["name"], "/shared") for volume in pod["volumes"]
        ]
    [secret] = head["template"]["spec"]["containers"][0]["env"]
    assert secret["name"] == STUDY_VARIABLE
    assert "secretKeyRef" in secret["valueFrom"]
    [other] = re.findall(r"^#\s+(python -m raymlc\.tune (?:.*\\\n)*.*)$", TEXT, flags=re.MULTILINE)
    assert job["spec"]["entrypoint"].split() == re.sub(r"\\\n#", "", other).split()
    versions_of_ray = set(re.findall(r"\bray(?::|==)(\d+\.\d+\.\d+)", text))
    assert versions_of_ray == {cluster["rayVersion"]} == set(re.findall(r"\bray==([\w.]+)", TEXT))


def test_a_database_is_named_to_the_job_by_a_file_of_the_head_alone(tmp_path: Path) -> None:
    [line] = re.findall(r"^#     (\. .*python -m raymlc\.tune.*)$", TEXT, flags=re.MULTILINE)
    (tmp_path / "study.env").write_text("export RAYMLC_STUDY=postgresql://me:secret@host/db\n")
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$RAYMLC_STUDY $*"\n')
    python.chmod(0o755)
    # As `ray job submit` hands its words on, and the head runs them.
    entrypoint = subprocess.list2cmdline(shlex.split(line, comments=True))
    assert "secret" not in entrypoint
    done = subprocess.run(
        entrypoint, shell=True, capture_output=True, text=True, check=True,
        env={"HOME": str(tmp_path), "PATH": f"{tmp_path}/bin:/usr/bin:/bin"},
    )  # fmt: skip
    assert done.stdout == "postgresql://me:secret@host/db -m raymlc.tune --address auto\n"
    assert "~/study.env" not in yaml.safe_dump(prepared("AWS")), "workers do not get it"
    passwords = re.findall(r"\w+://[^\s/:]*:([^\s@]*)@", TEXT)
    assert passwords == ["PASSWORD"], "a placeholder"
