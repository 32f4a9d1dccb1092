"""Recipes: the commands they come down to, the plan, and what stops one."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tyro
from huggingface_hub.errors import GatedRepoError
from huggingface_hub.utils import httpx

import builders
from builders.download.__main__ import parse
from loader.format import Manifest
from precompute import make, preview, push, run, verify
from precompute.errors import UsageError
from precompute.hub import permissions
from precompute.input.options import parse_option
from precompute.recipes.make_recipe import Dataset, MakeRecipe, read_recipe
from tests.support.forked import run_command
from tests.support.launching import ROOT

DEMO = """
[flags]
vae = "toy"
text-encoder = ["toy", "second=toy"]
dtype = "float32"
resolutions = [64, 128]

[datasets.demo]
full = { rows = 22, gigabytes = 0.5 }
small = { rows = 2, gigabytes = 0.1 }
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "photographs.toml"
    path.write_text(DEMO)
    return path


def run_make(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run_command("precompute/make.py", *arguments)


def test_shipped_recipe_names_the_datasets_of_the_paper() -> None:
    recipe = read_recipe("micro_budget", small=False)
    small = read_recipe("micro_budget", small=True)
    assert {dataset.name for dataset in recipe.datasets} <= set(builders.names())
    assert len(recipe.datasets) == 6
    assert all(few.rows < all_.rows / 50 for few, all_ in zip(small.datasets, recipe.datasets, strict=True))
    from datasets import get_dataset_config_names

    for dataset in small.datasets:
        assert dataset.config in get_dataset_config_names(f"builders/{dataset.name}")


@pytest.fixture(autouse=True)
def in_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the others as `python precompute/make.py` does."""
    monkeypatch.setattr("sys.argv", ["precompute/make.py"])


def test_steps_are_commands_in_order(tmp_path: Path) -> None:
    config = make.Config("micro_budget", small=True, only=("coco",), push_to="someone", latents=tmp_path)
    found = list(make.steps(config, read_recipe("micro_budget", small=True, only=config.only)))
    verbs = ["download", "precompute train", "precompute validation", "verify", "preview", "push"]
    assert [step.verb for step in found] == verbs
    assert found[0].command[1:6] == ["-m", "builders.download", "coco", "--name", "small"]
    assert found[1].command[:4] == ["accelerate", "launch", "precompute/run.py", "builders/coco"]
    assert found[-1].command[-1] == "someone/micro-budget-coco"


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_every_command_is_one_that_its_script_takes(tmp_path: Path, small: bool, stream: bool) -> None:
    (tmp_path / "sa1b").mkdir()
    (tmp_path / "sa1b" / "links.txt").touch()
    config = make.Config("micro_budget", small=small, stream=stream, raw=tmp_path, push_to="someone")
    verbs = {"run": run, "verify": verify, "preview": preview, "push": push}
    seen = set()
    for step in make.steps(config, read_recipe("micro_budget", small)):
        place, script = next(
            (i, Path(word).stem)
            for i, word in enumerate(step.command)
            if "precompute" in word or "builders." in word
        )
        arguments = step.command[place + 1 :]
        if step.verb == "download":
            options = parse(arguments)
            assert options.dataset == [step.dataset] and options.name == ("small" if small else None)
            assert (options.links is not None) == (step.dataset == "sa1b")
        else:
            parsed = tyro.cli(verbs[script].Config, args=arguments)
            seen.add((script, getattr(parsed, "private", False)))
            if script == "run":
                assert parsed.resolutions == (256, 512) and "DFN5B" in parsed.text_encoder[0]
                assert bool(parsed.options) == (stream and step.dataset == "sa1b")
    assert seen == {("run", False), ("verify", False), ("preview", False), ("push", False), ("push", True)}


def test_what_may_not_be_shared_is_pushed_as_private(tmp_path: Path) -> None:
    (tmp_path / "sa1b").mkdir()
    (tmp_path / "sa1b" / "links.txt").touch()
    config = make.Config("micro_budget", raw=tmp_path, push_to="someone")
    pushes = [s for s in make.steps(config, read_recipe("micro_budget", False)) if s.verb == "push"]
    assert [s.dataset for s in pushes if "--private" in s.command] == ["journeydb", "sa1b"]


def test_missing_links_are_said_before_anything_runs(tmp_path: Path) -> None:
    done = run_make(
        "micro_budget",
        "--raw",
        tmp_path,
        "--latents",
        tmp_path,
        "--only",
        "sa1b",
        "--flags=--text-encoder toy",
        "--launch",
        sys.executable,
    )
    assert done.returncode == 2 and "==" not in done.stdout
    assert done.stderr.startswith(f"error: {tmp_path}/sa1b/links.txt: not there")
    assert len(done.stderr.splitlines()) == 1


def test_all_that_is_missing_is_said_at_once_a_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(permissions, "get_token", lambda: None)
    monkeypatch.setattr(make, "find_spec", lambda name: None)
    monkeypatch.setattr(make, "run", None)
    arguments = ["micro_budget", "--raw", str(tmp_path), "--push-to", "me", "--launch", "no-such-launcher"]
    monkeypatch.setattr("sys.argv", ["precompute/make.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        make.main()
    told = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and all(line.startswith("error: ") for line in told)
    missing = (
        "JourneyDB/JourneyDB",
        "links.txt",
        "--push-to me: no token",
        "openclip",
        "--launch no-such-launcher",
    )
    assert len(told) == len(missing)
    assert all(any(name in line for line in told) for name in missing)


class Answers:
    """A Hub that knows one token, `me`'s, which may read no gated dataset."""

    def whoami(self) -> dict[str, object]:
        return {"name": "me", "orgs": [{"name": "ours"}]}

    def auth_check(self, repository: str, repo_type: str) -> None:
        raise GatedRepoError("no", response=httpx.Response(403, request=httpx.Request("GET", "http://hub")))


def test_what_a_token_may_not_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permissions, "get_token", lambda: "hf_x")
    monkeypatch.setattr(permissions, "HfApi", Answers)
    assert [
        *permissions.writing_lacks("--push-to", "me"),
        *permissions.writing_lacks("--push-to", "ours"),
    ] == []
    (line,) = permissions.writing_lacks("--push-to", "you")
    assert line.startswith("--push-to you: this token writes to me, ours")
    (line,) = permissions.reading_lacks("a/b")
    assert "may not read it" in line and "accept the terms" in line


def test_readmes_lines_can_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What README tells a reader to type wants no links, terms or token that nobody has yet."""
    monkeypatch.setattr(permissions, "get_token", lambda: None)
    monkeypatch.setattr(make, "find_spec", lambda name: name)
    lines = re.findall(r"python precompute/make\.py ([^#\n]+)", (ROOT / "README.md").read_text())
    assert len(lines) >= 2 and any("--small" in line for line in lines)
    for line in lines:
        config = tyro.cli(make.Config, args=[*shlex.split(line), "--launch", sys.executable])
        recipe = read_recipe(config.recipe, config.small, config.only)
        assert config.plan or not list(make.lacks(config, recipe))


@pytest.fixture
def make_here(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """make.py in this process; what it starts are processes, forked from one that has imported it all."""

    def step(command: list[str]) -> subprocess.CompletedProcess[str]:
        python, *words = command
        assert python == sys.executable
        done = run_command(*words)
        print(done.stdout, done.stderr)
        return done

    monkeypatch.setattr(make.subprocess, "run", step)

    def make_here(*arguments: str | Path) -> None:
        monkeypatch.setattr("sys.argv", ["precompute/make.py", *map(str, arguments)])
        make.main()

    return make_here


def test_recipe_runs_to_the_end_and_again(
    recipe: Path, tmp_path: Path, make_here: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (recipe, "--stream", "--launch", sys.executable, "--latents", tmp_path / "latents")
    make_here(*arguments)
    manifest = Manifest.from_json((tmp_path / "latents" / "demo" / "manifest.json").read_bytes())
    assert manifest.splits["train"].complete
    assert [field.name for field in manifest.fields][-2:] == ["caption_latents", "caption_latents_second"]
    capsys.readouterr()
    make_here(*arguments)
    assert "4 of 4 units finished before" in capsys.readouterr().out


def test_a_step_that_fails_stops_the_recipe(
    recipe: Path, tmp_path: Path, make_here: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        make_here(
            recipe, "--stream", "--launch", sys.executable, "--latents", tmp_path, "--flags=--resolutions 250"
        )
    told = capsys.readouterr()
    assert ended.value.code == 1
    assert "error: demo: precompute train ended with exit code" in told.err
    assert "== demo: verify" not in told.out


def test_plan_is_measured(recipe: Path, tmp_path: Path) -> None:
    done = run_make(recipe, "--plan", "--raw", tmp_path / "raw", "--latents", tmp_path / "latents")
    assert done.returncode == 0, done.stderr
    assert "images/s on one process" in done.stdout
    assert not (tmp_path / "latents").exists()


@pytest.mark.parametrize("flags", ["", "--resolutions 1024"])
def test_plan_without_a_model_takes_what_the_recipe_states(recipe: Path, tmp_path: Path, flags: str) -> None:
    recipe.write_text("sample_bytes = 250_000\n" + DEMO.replace('vae = "toy"', f'vae = "{tmp_path}/none"'))
    folders = ("--raw", tmp_path / "raw", "--latents", tmp_path / "latents")
    done = run_make(recipe, "--plan", *folders, f"--flags={flags}")
    assert done.returncode == 0 and "not measured" in done.stderr
    whose = ", for its own flags without --flags" if flags else ""
    assert f"as the recipe states it{whose}: 244.1 KiB a sample" in done.stdout


def test_plan_is_arithmetic() -> None:
    dataset = Dataset("coco", None, ("train",), rows=7_200_000, gigabytes=1500)
    table = make.plan(MakeRecipe("x", (), (dataset,)), make.Measured(200_000, 100), raw=True)
    assert table.splitlines()[1].split() == ["coco", "7,200,000", "1.50", "TB", "1.44", "TB", "20.0"]


@pytest.mark.parametrize(
    ("content", "named"),
    [("", "datasets"), ("[datasets.demo]\nfull = {}", "rows"), ("nonsense", "photographs.toml")],
)
def test_recipe_that_is_wrong(recipe: Path, content: str, named: str) -> None:
    recipe.write_text(content)
    with pytest.raises(UsageError, match=named):
        read_recipe(str(recipe), small=False)


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(UsageError, match="micro_budget"):
        read_recipe("nothing", small=False)
    with pytest.raises(UsageError, match="cc12m"):
        read_recipe("micro_budget", small=False, only=["coca"])


@pytest.mark.parametrize("stream", [True, False])
def test_flags_of_the_command_line_win_over_those_of_the_recipe(recipe: Path, stream: bool) -> None:
    flags = "--vae mine --crop random --text-encoder other --resolutions 32"
    config = make.Config(str(recipe), flags=flags, stream=stream)
    found = make.steps(config, read_recipe(str(recipe), small=True))
    (command,) = (step.command for step in found if step.verb == "precompute train")
    parsed = tyro.cli(run.Config, args=command[command.index("precompute/run.py") + 1 :])
    assert (parsed.vae, parsed.crop, parsed.dtype) == ("mine", "random", "float32")
    assert (parsed.text_encoder, parsed.resolutions) == (("other",), (32,))


def test_options_are_written_as_in_python_too() -> None:
    assert [parse_option(f"x={value}")[1] for value in ("True", "true", "None", "Trueish")] == [
        True,
        True,
        None,
        "Trueish",
    ]
