"""Type what messages say: from an empty directory, with the package installed, each command that a cure names does what it promises.

    cd EMPTY && ENVIRONMENT/bin/python -P tests/cures.py

A message's command stands between backticks. What only its reader knows, the flags of the run, is added. What provokes messages, and a
command that was typed before, runs in a process forked from one that has imported the package: in a tenth of the time.
"""

import atexit
import html
import multiprocessing
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from loader import make_loader

sys.path.append(str(Path(__file__).parent / "support"))
from loopback_hub import LoopbackHub

REPO = "owner/cures"
MODELS = ["--vae", "toy", "--text-encoder", "toy", "--dtype", "float32", "--resolutions", "64"]
RUN = ["builders/demo", "--limit", "6", "--output", "out", *MODELS]
MILL = str(Path(sys.executable).with_name("latentmill"))
HERE = {**os.environ, "COLUMNS": "200", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


FORKS = multiprocessing.get_context("forkserver")
SAID = Path("../said.txt")
typed: set[str] = set()


def start(*words: str, code: int = 0) -> str:
    """What a command says. Its exit code has to be `code`."""
    done = subprocess.run([*words], env=HERE, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return _checked(words, done.returncode, done.stdout, code)


def mill(*words: str, code: int = 0) -> str:
    """The same of `latentmill` and words, forked."""
    SAID.write_bytes(b"")
    process = FORKS.Process(target=_become, args=(words, str(SAID.absolute())))
    process.start()
    process.join()
    return _checked(("latentmill", *words), process.exitcode, SAID.read_text(encoding="utf-8"), code)


def _become(words: tuple[str, ...], said: str) -> None:
    from precompute.__main__ import main

    out = os.open(said, os.O_WRONLY | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.argv = ["latentmill", *words]
    try:
        main()
    finally:
        atexit._run_exitfuncs()


def _checked(words: tuple[str, ...], exit_code: int | None, said: str, code: int) -> str:
    if exit_code != code or "Traceback" in said:
        sys.exit(f"{shlex.join(words)}: exit code {exit_code} where {code} was expected\n{said}")
    return said


def cures(told: str) -> list[str]:
    """The commands that a message names."""
    return re.findall(r"`((?:latentmill|accelerate|python) [^`]*)`", told)


def take(told: str, begin: str, *more: str, code: int = 0) -> str:
    """Type the one command of a message, which begins so; more: what only its reader knows."""
    found = {cure for cure in cures(told) if cure.startswith(begin)}
    if len(found) != 1:
        sys.exit(f"expected one command that begins with {begin!r}, found {sorted(found)}, in:\n{told}")
    (cure,) = found
    print(f"    {cure} {shlex.join(more)}", flush=True)
    first, *rest = shlex.split(cure)
    if cure in typed and "precompute.run" in rest:
        return mill("run", *rest[rest.index("precompute.run") + 1 :], *more, code=code)
    typed.add(cure)
    # The scripts of the environment, whatever the PATH is; accelerate's own may lie where the tested set is installed.
    module = [sys.executable, "-P", "-m", "accelerate.commands.accelerate_cli"]
    program = {"latentmill": [MILL], "accelerate": module, "python": [sys.executable]}[first]
    return start(*program, *rest, *more, code=code)


def fresh() -> None:
    """The six samples of a run, as nothing had happened to them."""
    for path in Path("out").glob("*") if Path("out").exists() else ():
        path.unlink()
    mill("run", *RUN)


def what_a_run_says_at_its_end(hub: LoopbackHub) -> None:
    take(mill("run", *RUN), "latentmill verify")
    told = mill("run", *RUN[:-1], "64", "--options", "min_image_size=450", "--output", "few")
    take(told, "latentmill preview")
    page = html.unescape(Path("few/report.html").read_text(encoding="utf-8"))
    take(page, "latentmill verify")
    take(mill("pack", "out", "--output", "packed"), "latentmill verify")


def shards_without_a_sample(hub: LoopbackHub) -> None:
    mill("run", *RUN, "--options", "min_image_size=9000", "--output", "none", code=1)
    told = mill("bench", "none", "--resolution", "64", "--batch-size", "2", code=1)
    take(told, "latentmill verify")


def a_lost_sidecar(hub: LoopbackHub) -> None:
    Path("out/train-00000.parquet").unlink()
    told = mill("verify", "out", "--quick", code=1)
    Path("out/train-00000.json").unlink()
    take(told, "accelerate launch", *RUN)
    mill("verify", "out")


def an_unreadable_marker(hub: LoopbackHub) -> None:
    for verb, flags in (("verify", ["out"]), ("run", RUN), ("push", ["out", REPO])):
        Path("out/train-00000.json").write_text("{")
        told = mill(verb, *flags, code=1)
        Path("out/train-00000.json").unlink()
        take(told, "accelerate launch", *RUN)
        mill("verify", "out")


def an_unfinished_run(hub: LoopbackHub) -> None:
    for path in Path("out").glob("train-00000*"):
        path.unlink()
    told = mill("verify", "out", code=1)
    assert re.search(r"\d+ of \d+ units are finished", told), told
    take(told, "accelerate launch", *RUN)
    mill("verify", "out")


def photographs(folder: str) -> list[str]:
    """The flags of a run over two pictures of a folder of that name, which is made."""
    Path(folder).mkdir()
    for number in range(2):
        Image.effect_noise((64, 64), 40 + number).convert("RGB").save(f"{folder}/{folder}-{number}.png")
        Path(folder, f"{folder}-{number}.txt").write_text(f"picture {number} of {folder}")
    return [
        "builders/folder",
        "--data-dir",
        folder,
        "--options",
        "min_image_size=1",
        "--output",
        f"{folder}-out",
        *MODELS,
    ]


def stored(*outputs: str) -> set[str]:
    """The captions that the loader reads from them as one dataset."""
    loader = make_loader([*outputs], 2, shuffle=False, extras=["caption"])
    return {caption for batch in loader for caption in batch["caption"]}


def an_edited_caption(hub: LoopbackHub) -> None:
    flags = photographs("old")
    mill("run", *flags)
    Path("old/old-0.txt").write_text("another caption, written since")
    told = mill("run", *flags)
    assert "old-0.txt" in told and "--redo-changed does these units again" in told, told
    assert "picture 0 of old" in stored("old-out")
    mill("run", *flags, "--redo-changed")
    assert stored("old-out") == {"another caption, written since", "picture 1 of old"}
    mill("verify", "old-out")


def a_folder_that_grew(hub: LoopbackHub) -> None:
    flags = photographs("grown")
    mill("run", *flags)
    for path in Path("old").iterdir():
        shutil.copy(path, "grown")
    told = mill("run", *flags, code=1)
    assert "second --output" in told, told
    mill("run", *photographs("new"))
    mill("verify", "new-out")
    assert stored("grown-out", "new-out") == {
        f"picture {n} of {folder}" for n in (0, 1) for folder in ("grown", "new")
    }


def a_push_of_what_is_not_there(hub: LoopbackHub) -> None:
    Path("out/train-00000.json").unlink()
    take(mill("push", "out", REPO, code=1), "accelerate launch", *RUN)
    mill("push", "out", REPO)
    hub.repos.clear()
    Path("out/train-00000.tar").unlink()
    told = mill("push", "out", REPO, code=1)
    Path("out/train-00000.json").unlink()
    take(told, "accelerate launch", *RUN)
    mill("push", "out", REPO)


def a_push_of_what_is_damaged(hub: LoopbackHub) -> None:
    path = Path("out/train-00000.tar")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    told = take(mill("push", "out", REPO, code=1), "latentmill verify", code=1)
    Path("out/train-00000.json").unlink()
    take(told, "accelerate launch", *RUN)
    Path("out/null_caption.npz").write_bytes(b"no arrays")
    told = mill("push", "out", REPO, code=1)
    Path("out/null_caption.npz").unlink()
    take(told, "accelerate launch", *RUN)
    mill("push", "out", REPO)


def tars_that_are_on_the_hub_alone(hub: LoopbackHub) -> None:
    mill("push", "out", REPO, "--delete-pushed")
    told = mill("verify", "out", code=1)
    take(told.replace("USER/REPO", REPO), "latentmill verify")


def steps_of_a_recipe(hub: LoopbackHub) -> None:
    flags = 'vae = "toy"\ntext-encoder = ["toy"]\ndtype = "float32"\nresolutions = [64]\nlimit = 6\n'
    Path("photos.toml").write_text(
        f"[flags]\n{flags}[datasets.demo]\nfull = {{ rows = 6, gigabytes = 0.1 }}\n"
    )
    told = mill("make", "photos.toml", "--stream", "--launch", "python", "--push-to", "owner")
    typed = re.findall(r"^== demo: .*\n(.*)$", told, re.M)
    assert [line.split()[1] for line in typed] == ["-m", "verify", "preview", "push"], told
    for line in typed:
        take(f"`{line}`", "")


CASES: list[Callable[[LoopbackHub], None]] = [
    what_a_run_says_at_its_end, shards_without_a_sample, a_lost_sidecar, an_unreadable_marker, an_unfinished_run, an_edited_caption, a_folder_that_grew, a_push_of_what_is_not_there,
    a_push_of_what_is_damaged, tars_that_are_on_the_hub_alone, steps_of_a_recipe,
]  # fmt: skip


def main() -> None:
    if list(Path().iterdir()):
        sys.exit("begin in an empty directory")
    with LoopbackHub() as hub:
        HERE.update(
            HF_ENDPOINT=hub.url, HF_TOKEN="hf_owner", HF_HUB_OFFLINE="0", HF_HOME=str(Path("hf").absolute())
        )
        os.environ.update(HERE)  # which the forked read as they import
        FORKS.set_forkserver_preload(
            ["precompute.__main__", "precompute.run", "precompute.verify", "precompute.push"]
        )
        for case in CASES:
            print(f"{case.__name__.replace('_', ' ')}:", flush=True)
            hub.repos.clear()
            fresh()
            case(hub)


if __name__ == "__main__":
    main()
