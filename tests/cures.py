"""Type what messages say: from an empty directory, with the package installed, each command that a cure names does what it promises.

    cd EMPTY && ENVIRONMENT/bin/python -P tests/cures.py

A message's command stands between backticks. What only its reader knows, the flags of the run, is added. What provokes messages, and a
command that was typed before, runs in a process forked from one that has imported the package: in a tenth of the time. At the end
each place of the code that names a command has spoken.
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
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from loader import make_loader

sys.path.append(str(Path(__file__).parent / "support"))
from cures_in_code import places
from loopback_hub import LoopbackHub

REPO = "owner/cures"
MODELS = ["--vae", "toy", "--text-encoder", "toy", "--dtype", "float32", "--resolutions", "64"]
RUN = ["builders/demo", "--limit", "6", "--output", "out", *MODELS]
MILL = str(Path(sys.executable).with_name("latentmill"))
HERE = {**os.environ, "COLUMNS": "200", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


FORKS = multiprocessing.get_context("forkserver")
SAID = Path("../said.txt")
typed: set[str] = set()
heard: list[str] = []
# What takes a race, or a model whose states are beyond float16; tests/precompute hold these.
ELSEWHERE = {
    "e the layer again, with another output: COMMAND",
    ": COMMAND, or take layer=-1, whose states are nor",
}


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
    heard.append(said)
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
    take(re.sub("</?code>", "`", page), "latentmill verify")
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


def damage(path: str) -> None:
    """Turn one bit in the middle of a file."""
    data = bytearray(Path(path).read_bytes())
    data[len(data) // 2] ^= 1
    Path(path).write_bytes(data)


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
    assert "old-0.txt" in told, told
    assert "picture 0 of old" in stored("old-out")
    take(told, "latentmill run")
    assert stored("old-out") == {"another caption, written since", "picture 1 of old"}
    mill("verify", "old-out")


def a_folder_that_grew(hub: LoopbackHub) -> None:
    flags = photographs("grown")
    mill("run", *flags)
    for path in Path("old").iterdir():
        shutil.copy(path, "grown")
    told = mill("run", *flags, code=1)
    photographs("NEW")
    beside, anew = cures(told)
    take(f"`{beside}`", "latentmill run builders/folder")
    mill("verify", "grown-out-2")
    assert stored("grown-out", "grown-out-2") == {
        f"picture {n} of {folder}" for n in (0, 1) for folder in ("grown", "NEW")
    }
    shutil.rmtree("grown-out-2")
    take(f"`{anew}`", "latentmill run builders/folder")
    assert len(stored("grown-out-2")) == 4


def another_recipe(hub: LoopbackHub) -> None:
    told = mill("run", *RUN[:-1], "32", code=1)
    take(told, "latentmill run builders/demo")
    assert mill("verify", "out-2").startswith("out-2: whole")


def a_base_that_was_made_again(hub: LoopbackHub) -> None:
    layer = ["--beside", "out", "--output", "layer", "--text-encoder", "two=toy"]
    mill("run", *layer)
    Path("out/train-00000.json").unlink()
    shutil.rmtree("out")
    mill("run", *RUN, "--crop", "random")
    take(mill("run", *layer, code=1), "latentmill run")
    mill("verify", "layer-2", "--beside", "out")


def flags_that_want_another(hub: LoopbackHub) -> None:
    take(mill("verify", "out", "--vae", "toy", code=2), "latentmill verify out")
    flags = photographs("seen")
    mill("run", *flags)
    take(mill("verify", "seen-out", "--data-dir", "seen", code=2), "latentmill verify seen-out")
    Path("seen/stray.bin").write_bytes(b"stray")
    told = mill("verify", "seen-out", "--source", "builders/folder", "--data-dir", "seen", code=1)
    take(told, "accelerate launch", *flags[: -len(MODELS) - 1], "seen-again", *MODELS)


def an_unreadable_manifest(hub: LoopbackHub) -> None:
    Path("out/manifest.json").write_text("{")
    told = mill("push", "out", REPO, code=1)
    Path("out/manifest.json").unlink()
    take(told, "accelerate launch", *RUN)
    mill("push", "out", REPO)


def a_damaged_input(hub: LoopbackHub) -> None:
    table = pq.read_table("out/train-00000.parquet")
    place = table.schema.get_field_index("extras")
    pq.write_table(table.set_column(place, "extras", pa.array(["{"] * len(table))), "out/train-00000.parquet")
    told = mill("pack", "out", "--output", "repacked", code=1)
    take(told, "latentmill verify", "out", code=1)


def a_push_of_what_is_not_there(hub: LoopbackHub) -> None:
    Path("out/train-00000.json").unlink()
    told = mill("push", "out", REPO, code=1)
    take(told, "accelerate launch", *RUN)
    take(told, "latentmill push out")
    hub.repos.clear()
    Path("out/train-00000.tar").unlink()
    told = mill("push", "out", REPO, code=1)
    Path("out/train-00000.json").unlink()
    take(told, "accelerate launch", *RUN)
    mill("push", "out", REPO)


def a_push_of_what_is_damaged(hub: LoopbackHub) -> None:
    damage("out/train-00000.tar")
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
    what_a_run_says_at_its_end, shards_without_a_sample, a_lost_sidecar, an_unreadable_marker, an_unfinished_run, an_edited_caption, a_folder_that_grew,
    another_recipe, a_base_that_was_made_again, flags_that_want_another, an_unreadable_manifest, a_damaged_input, a_push_of_what_is_not_there,
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
    said = "\n".join(heard)
    for package in ("precompute", "loader", "builders"):
        (root,) = find_spec(package).submodule_search_locations  # type: ignore[union-attr, misc]
        for place, pattern in places(Path(root)):
            if place.partition(": ")[2] not in ELSEWHERE and not pattern.search(said):
                sys.exit(f"nobody heard {place}")


if __name__ == "__main__":
    main()
