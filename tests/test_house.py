"""The house keeps its shape: which part may import which, and the commands that README promises are the ones CI runs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"builders", "loader", "precompute", "examples", "benchmarks", "tests"}
MAY_IMPORT = {
    "builders": {"builders"},
    "loader": {"loader"},
    "precompute": {"builders", "loader", "precompute"},
    "examples": {"loader"},
}


def imported(path: Path) -> set[str]:
    """Top-level names of everything that a file imports, at any depth of its code."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(path.parent.name if node.level else str(node.module).partition(".")[0])
    return names


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_arrows_point_the_right_way(part: str) -> None:
    files = sorted((ROOT / part).rglob("*.py"))
    assert files
    wrong = {str(path.relative_to(ROOT)): imported(path) & OURS - MAY_IMPORT[part] for path in files}
    assert not {path: names for path, names in wrong.items() if names}


@pytest.mark.parametrize("part", ["builders", "loader"])
def test_a_leaf_needs_nothing_heavier_than_it_says(part: str) -> None:
    """Import every module of the part where what it must do without cannot be imported."""
    banned = {
        "builders": ["torch", "diffusers", "transformers", "accelerate", "webdataset"],
        "loader": ["diffusers", "transformers", "accelerate", "datasets", "webdataset", "PIL"],
    }[part]
    modules = sorted(
        f"{part}.{path.stem}"
        for path in (ROOT / part).glob("*.py")
        if path.stem not in ("__init__", "__main__")
    )
    code = f"import sys; sys.modules.update(dict.fromkeys({banned!r})); import importlib\n"
    code += f"for name in {modules!r}: importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_readme_and_ci_run_the_same_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "bash examples/demo.sh" in readme and "bash examples/demo.sh" in ci
    assert "bash tests/run.sh" in readme and "bash tests/run.sh" in ci


def test_every_file_in_readmes_tree_exists() -> None:
    """The tree at the end of README names files of the repository, and every module of ours is in it."""
    tree = (
        (ROOT / "README.md")
        .read_text(encoding="utf-8")
        .partition("## The files")[2]
        .partition("Apache-2.0")[0]
    )
    for part in ("builders", "loader", "precompute"):
        for path in (ROOT / part).glob("*.py"):
            if path.stem != "__init__":
                assert path.name in tree, f"{path.relative_to(ROOT)} is not in README's tree"
    for name in re.findall(r"\b[\w/]+\.(?:py|sh|toml|md)\b", tree):
        assert list(ROOT.glob(f"*/{name}")) or (ROOT / name).exists(), (
            f"README's tree has {name}, the repository not"
        )
