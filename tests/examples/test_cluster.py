"""The files under examples/cluster/: every command of ours in them is one that our own command line takes."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tyro
import yaml

from precompute.cloud.place import is_url
from precompute.config import Config, check

FOLDER = Path(__file__).parents[2] / "examples" / "cluster"
FILES = sorted(path.name for path in FOLDER.iterdir())
START = ("-m precompute.run ", "latentmill run ")


def text_of(path: Path) -> str:
    """What a shell is given: a container's list of words is one line of them."""
    if path.name != "kubernetes.yaml":
        text = path.read_text()
        # A script that hands its arguments on shows above how it is called.
        given = re.search(rf"^#.*examples/cluster/{re.escape(path.name)} (.+)$", text, re.MULTILINE)
        return text.replace('"$@"', given[1] if given else "")
    (container,) = yaml.safe_load(path.read_text())["spec"]["template"]["spec"]["containers"]
    return shlex.join(container["command"])


def commands(text: str) -> list[list[str]]:
    """Arguments of each `run`."""
    lines = [
        line.strip() for line in text.replace("\\\n", " ").splitlines() if not line.lstrip().startswith("#")
    ]
    found = [line.split(start, 1)[1] for line in lines for start in START if start in line]
    return [shlex.split(re.split(r'["&]', command)[0].replace("$", "")) for command in found]


@pytest.mark.parametrize("name", FILES)
def test_flags_are_ours(name: str) -> None:
    found = commands(text_of(FOLDER / name))
    assert found
    for arguments in found:
        check(tyro.cli(Config, args=arguments))


def test_a_machine_that_is_taken_away_leaves_its_units_in_the_bucket() -> None:
    """SkyPilot's begins with an empty disk: all of its jobs write into one store, and have the package for it."""
    text = text_of(FOLDER / "skypilot.yaml")
    (config,) = [tyro.cli(Config, args=arguments) for arguments in commands(text)]
    assert is_url(config.output) and not config.options and "'.[cloud]'" in yaml.safe_load(text)["setup"]


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".sh")])
def test_scripts_parse(name: str) -> None:
    subprocess.run(["bash", "-n", FOLDER / name], check=True)


def test_the_hubs_own_command_takes_the_jobs(tmp_path: Path) -> None:
    """`hf jobs run --dry-run`, of a file that calls it without."""
    hf = shutil.which("hf", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if hf is None:
        pytest.skip("needs hf, of huggingface_hub")
    short = tmp_path / "hf"
    short.write_text(f'#!/bin/sh\nshift 2\nexec {shlex.quote(hf)} jobs run --dry-run "$@"\n')
    short.chmod(0o755)
    given = {"USER": "you", "PACKAGE": "latentmill", "HF_TOKEN": "hf_made_up", "HF_HUB_OFFLINE": "1"}
    env = {**os.environ, **given, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", FOLDER / "hf_jobs.sh"], env=env, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for parts in ("0-543", "544-1087", "1088-1631", "1632-2175"):
        assert f"parts={parts}" in done.stdout, done.stdout
    assert "a100-large" in done.stdout and "hf_made_up" not in done.stdout + done.stderr


def test_skypilots_own_parser_takes_the_task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its schema, and what it makes of it with what `sky jobs launch` is told beside."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
    sky = pytest.importorskip("sky", reason="needs skypilot")
    config = yaml.safe_load((FOLDER / "skypilot.yaml").read_text())
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    task = sky.Task.from_yaml_config(config, secrets_overrides=[(key, "made-up") for key in keys])
    (resources,) = task.resources
    assert resources.use_spot and resources.accelerators == {"A100": 8}
    assert set(task.secrets) == set(keys)
    with pytest.raises(ValueError):
        sky.Task.from_yaml_config({**yaml.safe_load((FOLDER / "skypilot.yaml").read_text()), "made_up": 1})


def test_runtime_environment_is_one(tmp_path: Path) -> None:
    (given,) = re.findall(r"--runtime-env-json '(.*?)'", (FOLDER / "ray_job.sh").read_text())
    assert set(json.loads(given)) == {"working_dir", "excludes"}


def test_every_file_is_in_the_table_of_the_docs() -> None:
    docs = (FOLDER.parents[1] / "docs" / "scale.md").read_text()
    assert set(re.findall(r"examples/cluster/([\w.]+)\)", docs)) == set(FILES)
    for name in FILES:
        row = next(line for line in docs.splitlines() if f"cluster/{name})" in line)
        assert ("not tried" in row.lower()) == ("Not tried" in (FOLDER / name).read_text()), name
