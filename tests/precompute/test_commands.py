"""`latentmill VERB`: each verb is there under its name, and a message names commands as they are started where it is read."""

import importlib
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import tyro

from loader.format import Manifest
from precompute import __main__ as dispatcher
from precompute import commands
from precompute.commands import VERBS, as_started, command, executable, launched
from tests.support.launching import ROOT, environment
from tests.support.raw.photos import jpeg
from tests.support.tiny_models import save_clip, save_tiny


def answer(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr("sys.argv", ["/usr/bin/latentmill", *arguments])
    with pytest.raises(SystemExit) as ended:
        dispatcher.main()
    return ended.value.code


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_manual_under_its_own_name(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(monkeypatch, verb, "--help") == 0
    told = capsys.readouterr().out
    assert told.startswith(f"usage: latentmill {verb} ") and ".py" not in told.replace("loader.py", "")


def test_help_lists_the_verbs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(monkeypatch, "--help") == 0
    assert set(VERBS) <= set(capsys.readouterr().out.split())
    assert answer(monkeypatch) == 2


def test_an_unknown_verb_is_answered_with_a_known_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(monkeypatch, "verfy") == 2
    assert "did you mean verify?" in capsys.readouterr().err


def test_a_cure_names_the_command_as_it_is_started_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["latentmill push", "x"])
    assert (command("verify", "my shards"), launched()) == (
        "latentmill verify 'my shards'",
        "accelerate launch -m precompute.run",
    )
    monkeypatch.setattr("sys.argv", ["../mill/precompute/push.py", "x"])
    assert command("verify") == "python ../mill/precompute/verify.py"
    assert launched() == "accelerate launch ../mill/precompute/run.py"
    main = types.ModuleType("__main__")
    main.__spec__ = types.SimpleNamespace(name="precompute.push")  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert command("verify") == "python -m precompute.verify"
    assert command("download", "coco") == "python -m builders.download coco"


def test_outside_the_commands_it_is_whatever_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py"])
    monkeypatch.setattr(commands.shutil, "which", lambda name: None)
    assert command("verify") == "python -m precompute.verify"
    monkeypatch.setattr(commands.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert command("verify") == "latentmill verify"


def test_what_is_typed_runs_with_this_interpreter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(commands.shutil, "which", lambda name: None)
    monkeypatch.setattr(commands.sys, "executable", str(tmp_path / "python"))
    (tmp_path / "accelerate").touch()
    assert executable(["python", "x.py"]) == [str(tmp_path / "python"), "x.py"]
    assert executable(["latentmill", "verify"])[-2:] == ["precompute", "verify"]
    assert executable(["accelerate", "launch"]) == [str(tmp_path / "accelerate"), "launch"]


def test_examples_of_a_manual_are_typed_as_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["latentmill run"])
    text = "    python precompute/choose.py x\n    accelerate launch precompute/run.py y"
    assert as_started(text) == "    latentmill select x\n    accelerate launch -m precompute.run y"


@pytest.mark.parametrize("name", ["loader.py", "builders/__init__.py"])
def test_a_file_of_the_users_own_that_hides_ours_is_named(name: str, tmp_path: Path) -> None:
    hiding = tmp_path / name
    hiding.parent.mkdir(exist_ok=True)
    hiding.write_text("")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import precompute"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), text=True, capture_output=True
    )
    assert done.returncode and f"{hiding} hides Latentmill's package" in done.stderr.splitlines()[-1]


def test_doctor_tells_no_secret(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_averysecrettoken")
    answer(monkeypatch, "doctor")
    told = capsys.readouterr().out
    assert "token yes" in told and "averysecret" not in told and str(Path.home()) not in told
    assert len(told.splitlines()) <= 10


def test_readmes_own_photographs_work_as_they_are_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """README's lines, with models from folders in the place of the Hub's."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Your own photographs")[2]
    lines = re.findall(r"^    python precompute/(\w+)\.py (.*)$", readme.partition("\n## ")[0], re.M)
    assert [verb for verb, _ in lines] == ["run", "verify", "preview"]
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(jpeg(number, (320, 280)))
        (tmp_path / "photos" / f"{number}.txt").write_text(f"photograph {number}")
    models = {
        "madebyollin/taesd": save_tiny(tmp_path / "taesd"),
        "openai/clip-vit-base-patch32": save_clip(tmp_path / "clip"),
    }
    monkeypatch.chdir(tmp_path)
    for verb, typed in lines:
        words = [str(models.get(word, word)) for word in typed.split()]
        if verb != "run":
            words += ["--vae", str(models["madebyollin/taesd"])]
        if verb == "verify":
            words += ["--text-encoder", str(models["openai/clip-vit-base-patch32"])]
        module = importlib.import_module(f"precompute.{verb}")
        done = module.run(tyro.cli(module.Config, args=words))
        # Weights that nobody trained decode to nothing like a photograph; all else is whole.
        assert verb != "verify" or done in (0, 1)
    assert (tmp_path / "latents" / "photos" / "report.html").stat().st_size > 10_000
    manifest = Manifest.from_json((tmp_path / "latents" / "photos" / "manifest.json").read_bytes())
    assert manifest.splits["train"].samples == 3
