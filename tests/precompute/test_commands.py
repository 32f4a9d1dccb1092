"""`latentmill VERB`: each verb is there under its name, and a message names commands as they are started where it is read."""

import ast
import dataclasses
import importlib
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import tyro

from precompute import __main__ as dispatcher
from precompute import commands, run
from precompute.commands import VERBS, as_started, command, executable, launched, retyped
from precompute.encode.presets import Model
from precompute.flags import reading as flags
from tests.support.launching import ROOT, environment


def answer(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr("sys.argv", ["/usr/bin/latentmill", *arguments])
    with pytest.raises(SystemExit) as ended:
        dispatcher.main()
    return ended.value.code


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_manual_of_80_columns_with_its_flags_in_groups(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert answer(monkeypatch, verb, "--help") == 0
    told = capsys.readouterr().out
    assert told.startswith(f"usage: latentmill {verb} ") and ".py" not in told.replace("loader.py", "")
    assert max(map(len, told.splitlines())) <= 80
    # What a flag takes stands there in words, not as a type of Python.
    assert not re.search(r"\bNone\b|\b(STR|INT|FLOAT|PATH)\b", told)
    config = getattr(importlib.import_module(VERBS[verb][0]), "Config", None)
    if config is None or not dataclasses.fields(config):
        return
    boxes = re.split(r"^\W*?(?:(\w+) )?options\W*$", told, flags=re.M)[1:]
    shown = dict(zip(boxes[::2], boxes[1::2], strict=True))
    declared = flags.groups(config)
    assert len(declared) > 1 or len(dataclasses.fields(config)) <= 6
    for group, base in declared.items():
        for name, hint in get_type_hints(base, include_extras=True).items():
            if tyro.conf.Positional not in getattr(hint, "__metadata__", ()):
                flag = "for" if name == "for_model" else name.replace("_", "-")
                assert re.search(rf"^\W* --{flag}\b", shown[group or None], re.M), (group, flag)


def test_flags_in_groups_are_flags_of_one_config() -> None:
    words = ["builders/demo", "--output", "x", "--vae", "toy", "--no-flip", "--resolutions", "64", "128"]
    config = flags.read_flags(run.Config, "run", "", [*words, "--text-encoder", "a", "--text-encoder", "b=c"])
    assert config == run.Config(
        "builders/demo", Path("x"), vae="toy", resolutions=(64, 128), text_encoder=("a", "b=c")
    )
    assert config == tyro.cli(run.Config, args=[*words, "--text-encoder", "a", "--text-encoder", "b=c"])


@pytest.mark.parametrize(
    "verb", [verb for verb, (module, _) in VERBS.items() if module.startswith("precompute.")]
)
def test_a_slip_and_a_manual_are_answered_before_anything_heavy_is_imported(verb: str) -> None:
    """What takes seconds: torch, and all that is built on it or on tables."""
    code = """if True:
        import sys
        from precompute.__main__ import main
        sys.argv = ["latentmill", *sys.argv[1:]]
        try:
            main()
        finally:
            print(*{"torch", "diffusers", "transformers", "datasets", "pyarrow", "loader"} & sys.modules.keys())
    """
    for words, status, told in (
        (["--help"], 0, "usage: latentmill"),
        (["--outptu", "x"], 2, "--outptu: there is no"),
    ):
        command = [sys.executable, "-c", code, verb, *words]
        done = subprocess.run(command, cwd=ROOT, env=environment(), text=True, capture_output=True)
        assert done.returncode == status and told in done.stdout + done.stderr
        assert done.stdout.splitlines()[-1] == ""


@pytest.mark.parametrize(
    ("verb", "line", "told"),
    [
        ("run", "builders/demo --outptu x", "--outptu: there is no such flag; did you mean --output?"),
        ("run", "b --output x --for flux", "--for flux: there is none of that name; did you mean flux1 or flux2-dev or flux2-klein?"),
        ("run", "b --output x --for=sdx", "--for sdx: there is none of that name; did you mean sdxl?"),
        ("run", "b --output x --dtype half", "--dtype half: there is none of that name; there are bfloat16, float16, float32"),
        ("run", "b --output x --options a=1 --options b=2", "--options: give it once, with all values behind it"),
        ("verify", "x --options a=1 --options b=2", "--options: give it once, with all values behind it"),
        ("make", "x --only a --only b", "--only: give it once, with all values behind it"),
        ("verify", "x --quik", "--quik: there is no such flag; did you mean --quick?"),
    ],
)  # fmt: skip
def test_a_slip_is_one_line_with_what_was_meant(
    verb: str, line: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(monkeypatch, verb, *shlex.split(line)) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {told}") and len(said.splitlines()) == 1


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


def test_what_was_typed_is_typed_again_with_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    line = ["builders/folder", "--data_dir=my photos", "--output", "out/", "--flip"]
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setattr("sys.argv", ["latentmill run", *line])
    front = "`latentmill run builders/folder"
    assert retyped("--redo-changed") == f"{front} '--data_dir=my photos' --output out/ --flip --redo-changed`"
    assert retyped(output="{}-2") == f"{front} '--data_dir=my photos' --flip --output out-2`"
    assert retyped(data_dir="NEW") == f"{front} --output out/ --flip --data-dir NEW`"
    monkeypatch.setattr("sys.argv", ["/x/precompute/run.py", *line])
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert retyped("--compile").startswith("`accelerate launch /x/precompute/run.py builders/folder ")
    monkeypatch.setattr("sys.argv", ["train.py", "--lr", "1"])
    assert retyped("--compile") == "the same command with --compile"


@pytest.mark.parametrize(
    "name", ["secret_access_key", "aws_session_token", "account_key", "SAS_TOKEN", "password"]
)
@pytest.mark.parametrize("joint", [["--store-option", "{}"], ["--store-option={}"], ["--store_option={}"]])
def test_what_is_typed_again_tells_no_secret(
    name: str, joint: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [word.format(f"{name}=hunter2") for word in joint]
    monkeypatch.setattr(
        "sys.argv",
        [
            "latentmill run",
            "x",
            "--output",
            "s3://b/p",
            *given,
            "--store-option",
            "endpoint=https://me:hunter2@host",
        ],
    )
    told = retyped("--redo-changed")
    assert "hunter2" not in told and f"{name}=..." in told and "endpoint=https://host" in told


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


README = (ROOT / "README.md").read_text(encoding="utf-8")
FLAG = r"(?<![\w-])--[a-z]+(?:[-_][a-z0-9]+)*(?![\w-])"
# Flags of other people's programs that messages name.
THEIRS = {
    "accelerate": {"--num_processes", "--multi_gpu", "--cpu"},
    "train_dit.py": {"--steps"},
    "Midjourney": {"--no"},
    "tar": {"--sort", "--sparse", "--hard-dereference"},
    "aws": {"--endpoint-url", "--profile"},
    "az": {"--container-name", "--name", "--account-name"},
}


def texts(node: ast.AST) -> Iterator[str]:
    """What a program says: its strings but for docstrings, f-strings with a word for each value."""
    for one in ast.iter_child_nodes(node):
        if isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant):
            continue
        if isinstance(one, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "VALUE" for part in one.values]
            yield "".join(map(str, parts))
        elif isinstance(one, ast.Constant) and isinstance(one.value, str):
            yield one.value
            continue
        yield from texts(one)


def flags_of(verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> set[str]:
    answer(monkeypatch, verb, "--help")
    lines = capsys.readouterr().out.splitlines()
    return {flag for line in lines if re.match(r"\W*--?\w", line) for flag in re.findall(r"--[a-z-]+", line)}


def test_every_flag_and_command_that_a_message_names_exists(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {verb: flags_of(verb, monkeypatch, capsys) for verb in VERBS}
    every = set.union(*known.values(), *THEIRS.values())
    assert set(re.findall(FLAG, README)) <= every
    for path in [
        path for name in ("builders", "precompute", "loader") for path in (ROOT / name).rglob("*.py")
    ]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for text in texts(tree):
            unknown = set(re.findall(FLAG, text)) - every
            assert not unknown, f"{path}: {text!r} names {unknown}"
            assert set(re.findall(r"\blatentmill (\w+)", text)) <= {*VERBS, "reads"}, text
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") in ("command", "words", "script"):
                named = [str(one.value) for one in call.args if isinstance(one, ast.Constant)]
                assert {word for word in named if word.startswith("--")} <= known.get(
                    named[0] if named else "", set()
                )


def test_the_readme_names_every_model_and_counts_those_that_are_held_against_their_pipeline() -> None:
    models = get_args(Model)
    assert set(models) <= set(re.findall(r"`([a-z0-9-]+)`", README))
    assert len(models) - 1 == 19 and "nineteen models" in " ".join(README.split())


def test_every_command_of_the_readme_is_one_that_can_be_typed() -> None:
    typed = re.findall(
        r"^    (?:python|accelerate launch) precompute/(\w+)\.py (.*?)(?: +#.*)?$",
        README.replace("\\\n", ""),
        re.M,
    )
    assert len(typed) > 12
    for name, line in typed:
        config = importlib.import_module(f"precompute.{name}").Config
        flags.read_flags(config, name, "", shlex.split(line))
