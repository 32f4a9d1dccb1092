"""The house keeps its shape: which part may import which, and the commands that README promises are the ones CI runs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from setuptools import find_packages

from precompute import commands

ROOT = Path(__file__).parents[1]
OURS = {"builders", "loader", "precompute", "examples", "benchmarks", "tests"}
LOADER = {"loader"}
BUILDERS = {"builders.core", "builders.archives", "builders"}
GROUND = {
    "precompute",
    "precompute.shards",
    "loader",
}  # "precompute" is its modules beside the commands: config, errors
READING = GROUND | BUILDERS | {"precompute.input", "precompute.encode"}
CHECKING = READING | {"precompute.cloud", "precompute.runtime", "precompute.verification"}
# Which room may import which. A room is a folder; the files of a part's own folder are a room too.
MAY_IMPORT = {
    "builders.core": {"builders.core"},
    "builders.archives": {"builders.core", "builders.archives"},
    "builders": BUILDERS,
    "builders.download": {*BUILDERS, "builders.download"},
    "loader": LOADER,
    "precompute.shards": GROUND,
    "precompute.recipes": {"precompute", "precompute.recipes"},
    "precompute.cloud": {*GROUND, *BUILDERS, "precompute.cloud"},
    "precompute.encode": {*GROUND, "builders.core", "precompute.encode"},
    "precompute.input": READING,
    "precompute.runtime": {*READING, "precompute.cloud", "precompute.runtime"},
    "precompute.verification": {*READING, "precompute.verification"},
    "precompute.report": {*CHECKING, "precompute.report"},
    "precompute.hub": {*CHECKING, "precompute.report", "precompute.hub"},
    "precompute": {*CHECKING, "precompute.report", "precompute.hub", "precompute.recipes"},
    "examples": LOADER,
}
# Commands: each is a verb of `latentmill`.
VERBS = {
    module.partition(".")[2] for module, _ in commands.VERBS.values() if module.startswith("precompute.")
}


def room_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).parent.parts)


def imported(path: Path) -> set[str]:
    """Dotted names of everything of ours that a file imports, at any depth of its code; a name out of a package counts with it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.partition(".")[0] in OURS}


def room_imported(name: str) -> str:
    """`precompute.encode.image.ImageEncoder` lies in the room `precompute.encode`."""
    parts = name.split(".")
    while parts and not ROOT.joinpath(*parts).is_dir():
        parts.pop()
    return ".".join(parts)


def sources(part: str) -> list[Path]:
    files = sorted(path for path in (ROOT / part).rglob("*.py") if room_of(path) in MAY_IMPORT)
    assert files
    return files


@pytest.mark.parametrize("part", ["builders", "loader", "precompute", "examples"])
def test_every_file_is_in_a_room_that_is_known(part: str) -> None:
    assert {room_of(path) for path in (ROOT / part).rglob("*.py")} <= MAY_IMPORT.keys()


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_arrows_point_the_right_way(room: str) -> None:
    files = [path for path in sources(room.partition(".")[0]) if room_of(path) == room]
    assert files
    wrong = {
        str(path.relative_to(ROOT)): [
            name for name in imported(path) if room_imported(name) not in MAY_IMPORT[room]
        ]
        for path in files
    }
    assert not {path: names for path, names in wrong.items() if names}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


CIRCLES: set[str] = set()  # only shrinks


def test_no_module_imports_itself_by_way_of_others() -> None:
    files = {module_of(path): path for part in ("builders", "loader", "precompute") for path in sources(part)}

    def target(name: str) -> str:
        return name if name in files else name.rpartition(".")[0]

    arrows = {
        name: {target(n) for n in imported(path)} & files.keys() - {name} for name, path in files.items()
    }
    left = dict(arrows)
    while free := [name for name, to in left.items() if not to & left.keys()]:
        for name in free:
            del left[name]
    while free := [name for name in left if not any(name in to for to in left.values())]:
        for name in free:
            del left[name]
    assert left.keys() <= CIRCLES, f"import each other: {sorted(left)}"
    assert left.keys() >= CIRCLES, "strike it off the list"


def test_precompute_holds_commands_and_builders_holds_datasets() -> None:
    found = {path.stem for path in (ROOT / "precompute").glob("*.py")}
    assert found == VERBS | {"__init__", "__main__", "commands", "config", "errors", "flags"}
    for path in (ROOT / "builders").glob("*.py"):
        if path.stem != "__init__":
            assert "DEFAULT_CONFIG_NAME" in path.read_text() or "Builder)" in path.read_text(), path


def test_no_command_hides_a_module_of_python() -> None:
    """A script's own folder comes first on its path: precompute/select.py would be what `import select` finds."""
    assert not {path.stem for path in (ROOT / "precompute").iterdir()} & set(sys.stdlib_module_names)


def test_the_wheel_holds_every_package() -> None:
    found = set(find_packages(str(ROOT), include=["builders*", "precompute*", "loader*"]))
    folders = {
        room_of(path) for part in ("builders", "loader", "precompute") for path in (ROOT / part).rglob("*.py")
    }
    assert found == folders


# Files of over 300 lines and classes of over 150: two nouns each. Both lists stay empty.
LONG_FILES: dict[str, int] = {}
LONG_CLASSES: dict[str, int] = {}


def test_files_and_classes_stay_small() -> None:
    files, classes = {}, {}
    for path in (path for part in ("builders", "loader", "precompute") for path in sources(part)):
        text = path.read_text(encoding="utf-8")
        if (lines := text.count("\n")) > 300:
            files[str(path.relative_to(ROOT))] = lines
        for node in ast.walk(ast.parse(text)):
            if (
                isinstance(node, ast.ClassDef)
                and node.end_lineno
                and (size := node.end_lineno - node.lineno + 1) > 150
            ):
                classes[f"{path.relative_to(ROOT)}:{node.name}"] = size
    assert {name: size for name, size in files.items() if size > LONG_FILES.get(name, 300)} == {}
    assert {name: size for name, size in classes.items() if size > LONG_CLASSES.get(name, 150)} == {}
    assert files.keys() >= LONG_FILES.keys() and classes.keys() >= LONG_CLASSES.keys(), (
        "strike it off the list"
    )


@pytest.mark.parametrize("part", ["builders", "loader"])
def test_a_leaf_needs_nothing_heavier_than_it_says(part: str) -> None:
    """Import every module of the part where what it must do without cannot be imported."""
    banned = {
        "builders": ["torch", "diffusers", "transformers", "accelerate", "webdataset"],
        "loader": ["diffusers", "transformers", "accelerate", "datasets", "webdataset", "PIL"],
    }[part]
    modules = sorted(module_of(path) for path in sources(part) if path.stem != "__main__")
    code = f"import sys; sys.modules.update(dict.fromkeys({banned!r})); import importlib\n"
    code += f"for name in {modules!r}: importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_readme_and_ci_run_the_same_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "bash examples/demo.sh" in readme and "bash examples/demo.sh" in ci
    assert "bash tests/run.sh" in readme and "bash tests/run.sh" in ci


def test_readmes_tree_has_every_room_and_nothing_else() -> None:
    """The tree at the end of README has a line for each room; what it names is there."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = readme.partition("## The rooms")[2].partition("Apache-2.0")[0]
    for room in MAY_IMPORT:
        assert re.search(rf"^ *{room.replace('.', '/')}/ ", tree, re.M), f"{room} is not in README's tree"
    for name in re.findall(r"\b[\w/]+\.(?:py|sh|toml|md)\b", tree):
        assert list(ROOT.glob(f"**/{name}")), f"README's tree has {name}, the repository not"


def test_nothing_that_people_copy_unpickles_what_a_tar_holds() -> None:
    """webdataset's own `.decode()` does, of a member called `.pyd` or `.pickle`."""
    written = [
        ROOT / "README.md",
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("examples/**/*.py"),
        *sources("precompute"),
    ]
    for path in written:
        assert not re.search(r"WebDataset\([^\n]*\)\.decode\(", path.read_text(encoding="utf-8")), path
