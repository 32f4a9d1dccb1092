"""The house keeps its shape, and each of its rules is seen to fail on a tree that breaks it; CI runs what README promises."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import house
from tests.support.house import RULES, Rule

ROOT = Path(__file__).parents[1]
COMMANDS = 'VERBS = {"run": ("precompute.run", "work")}'
BESIDE = {f"precompute/{name}.py": "" for name in ("__init__", "__main__", "config", "errors", "run")}
PRECOMPUTE = {**BESIDE, "precompute/commands.py": COMMANDS}
# A rule, files of a tree that breaks it, and what is told of it.
BROKEN: list[tuple[Rule, dict[str, str], str]] = [
    (house.unknown_rooms, {"loader/attic/a.py": ""}, "loader/attic/a.py"),
    (house.unknown_rooms, {"precompute/input/deep/a.py": ""}, "precompute/input/deep/a.py"),
    (
        house.turned_arrows,
        {"builders/core/a.py": "from builders.archives.b import c", "builders/archives/b.py": "c = 1"},
        "builders/core/a.py: builders.archives.b.c",
    ),
    (
        house.turned_arrows,
        {"loader/a.py": "def f():\n    import precompute.config", "precompute/config.py": ""},
        "loader/a.py: precompute.config",
    ),
    (
        house.turned_arrows,
        {"precompute/input/a.py": "import precompute.runtime.b", "precompute/runtime/b.py": ""},
        "precompute/input/a.py: precompute.runtime.b",
    ),
    (
        house.circles,
        {
            "loader/a.py": "import loader.b",
            "loader/b.py": "from loader import c",
            "loader/c.py": "from loader.a import x",
        },
        "loader.a loader.b loader.c",
    ),
    (house.strangers, {**PRECOMPUTE, "precompute/helpers.py": ""}, "helpers"),
    (house.strangers, {**BESIDE, "precompute/commands.py": COMMANDS.replace("run", "gone")}, "gone run"),
    (house.strangers, {**PRECOMPUTE, "builders/tools.py": "def f(): ..."}, "builders/tools.py"),
    (house.hidden_modules, {"precompute/select.py": ""}, "select"),
    (house.missing_from_the_wheel, {"loader/__init__.py": "", "loader/core/a.py": ""}, "loader.core"),
    (
        house.missing_from_the_readme,
        {"loader/a.py": "", "README.md": "## The rooms\n\n    builders/   datasets"},
        "loader is not in README's tree",
    ),
    (
        house.missing_from_the_readme,
        {"loader/a.py": "", "README.md": "## The rooms\n\n    loader/   gone.py reads"},
        "README's tree has gone.py, the repository not",
    ),
    (house.grown, {"loader/a.py": "x = 1\n" * 301}, "loader/a.py: 301 lines"),
    (house.grown, {"loader/a.py": "class A:\n" + "    x = 1\n" * 150}, "loader/a.py: A, 151 lines"),
    (
        house.doubled_words,
        {"loader/a.py": "class Part: ...", "precompute/shards/b.py": "class Part: ..."},
        "Part: loader/a.py, precompute/shards/b.py",
    ),
    (
        house.set_from_outside,
        {"loader/a.py": "def f(batch):\n    batch.last = True"},
        "loader/a.py:2: batch.last",
    ),
    (
        house.set_from_outside,
        {"loader/a.py": "class A:\n    def f(self):\n        self.other.count += 1"},
        "loader/a.py:3: self.other.count",
    ),
    (house.set_from_outside, {"loader/a.py": "a, b.c = 1, 2"}, "loader/a.py:1: b.c"),
    (house.set_from_outside, {"loader/a.py": "setattr(stats, name, 1)"}, "loader/a.py:1: stats.name"),
    (
        house.filled,
        {"loader/a.py": "def f(notes: list[str]) -> None:\n    notes.append('x')"},
        "loader/a.py:2: f, notes",
    ),
    (
        house.filled,
        {"loader/a.py": "def f(errors: dict[int, str]) -> None:\n    errors[1] = 'x'"},
        "loader/a.py:2: f, errors",
    ),
    (
        house.private_seams,
        {
            "loader/a.py": "class A:\n    def _read_on(self): ...",
            "tests/t.py": "patch.setattr(A, '_read_on', 1)",
        },
        "tests/t.py:1: _read_on",
    ),
    (
        house.private_seams,
        {"loader/a.py": "_x = 1", "tests/t.py": "from loader.a import _x"},
        "tests/t.py:1: _x",
    ),
    (house.private_seams, {"loader/a.py": "_x = 1", "tests/t.py": "print(a._x)"}, "tests/t.py:1: _x"),
    (house.comments_behind_brackets, {"tests/t.py": "x = (\n    1\n)  # one"}, "tests/t.py:3: # one"),
    (house.comments_behind_brackets, {"loader/a.py": "x = [  # some\n    1\n]"}, "loader/a.py:1: # some"),
    (
        house.docstrings_by_preposition,
        {"benchmarks/a.py": 'def f():\n    """Of what is here."""'},
        "benchmarks/a.py:1: Of what is here.",
    ),
    (
        house.unpickled,
        {"README.md": "wds.WebDataset(urls).decode()", "examples/a.py": ""},
        "README.md",
    ),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps(rule: Rule) -> None:
    assert list(rule(ROOT)) == []


@pytest.mark.parametrize(("rule", "files", "told"), BROKEN, ids=lambda part: getattr(part, "__name__", ""))
def test_a_broken_rule_is_told(tmp_path: Path, rule: Rule, files: dict[str, str], told: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert " ".join(rule(tmp_path)) == told


def test_each_rule_is_seen_to_fail() -> None:
    assert {rule for rule, *_ in BROKEN} == set(RULES)


def test_every_room_is_there_and_has_files() -> None:
    rooms = {house.room_of(ROOT, path) for path in house.files_of(ROOT, *house.SHIPPED)}
    assert rooms == house.MAY_IMPORT.keys()


@pytest.mark.parametrize("part", ["builders", "loader"])
def test_a_leaf_needs_nothing_heavier_than_it_says(part: str) -> None:
    """Import every module of the part where what it must do without cannot be imported."""
    banned = {
        "builders": ["torch", "diffusers", "transformers", "accelerate", "webdataset"],
        "loader": ["diffusers", "transformers", "accelerate", "datasets", "webdataset", "PIL"],
    }[part]
    files = (path for path in house.files_of(ROOT, part) if path.stem != "__main__")
    modules = sorted(house.module_of(ROOT, path) for path in files)
    code = f"import sys; sys.modules.update(dict.fromkeys({banned!r})); import importlib\n"
    code += f"for name in {modules!r}: importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_readme_and_ci_run_the_same_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "bash examples/demo.sh" in readme and "bash examples/demo.sh" in ci
    assert "bash tests/run.sh" in readme and "bash tests/run.sh" in ci
