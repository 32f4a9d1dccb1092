"""The rules of the house, each a function over the root of a tree that returns its faults, a line each: none where it is kept."""

import ast
import io
import re
import sys
import tokenize
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from setuptools import find_packages

PARTS = ("builders", "loader", "precompute")
SHIPPED = (*PARTS, "examples")
ALL = (*SHIPPED, "benchmarks", "tests")

LOADER = {"loader"}
BUILDERS = {"builders.core", "builders.archives", "builders"}
# "precompute" is its modules beside the commands: config, errors.
GROUND = {"precompute", "precompute.flags", "precompute.shards", "loader"}
READING = GROUND | BUILDERS | {"precompute.input", "precompute.encode"}
CHECKING = READING | {"precompute.cloud", "precompute.runtime", "precompute.verification"}
# Which room may import which. A room is a folder; the files of a part's own folder are a room too.
MAY_IMPORT = {
    "builders.core": {"builders.core"},
    "builders.archives": {"builders.core", "builders.archives"},
    "builders": BUILDERS,
    "builders.download": {*BUILDERS, "builders.download"},
    "loader": LOADER,
    "precompute.flags": {"precompute.flags"},
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
BESIDE_COMMANDS = {"__init__", "__main__", "commands", "config", "errors"}
# Files of over 300 lines and classes of over 150: two nouns each.
MOST_OF_A_FILE, MOST_OF_A_CLASS = 300, 150
# Flags of a command, which everybody names with it: verify.Config.
FLAGS = re.compile(r"Config|\w+Flags")
# Objects of other libraries, which have no other way. Everything else is told by a method or the constructor.
OF_OTHERS = {
    "builders/__init__.py": {"dataset_module_factory.knows_builders", "_module.dataset_module_factory"},
    "builders/core/color.py": {"converted.info"},
    "builders/core/images.py": {"image.info"},
    "builders/core/log.py": {"record.msg", "record.args"},
    "precompute/cloud/store_controls.py": {"self._seen.found"},
    "precompute/encode/devices.py": {
        "torch.backends.cudnn.deterministic",
        "torch.backends.cudnn.allow_tf32",
    },
    "precompute/encode/image.py": {
        "torch._dynamo.config.recompile_limit",
        "torch._dynamo.config.accumulated_recompile_limit",
    },
    "precompute/encode/text_models.py": {"model.config.use_cache", "tokenizer.pad_token"},
    "precompute/encode/toy.py": {"parameter.data"},
    "precompute/errors.py": {"record.msg", "record.args"},
    "precompute/shards/hub_client.py": {"client.event_hooks", "request.extensions"},
    "precompute/shards/tar_writer.py": {"info.size"},
}
# What subclasses of ours and of others fill in, as CONTRIBUTING says; and what other libraries call by a name of ours.
HOOKS = {"_sources", "_read", "_encode", "_server", "_replace"}
PREPOSITIONS = re.compile(
    "about|above|across|after|against|along|among|around|as|at|before|behind|below|beneath|beside|besides|between|beyond|by|despite|"
    "down|during|except|for|from|in|inside|into|like|near|of|off|on|onto|out|outside|over|past|per|since|through|throughout|till|to|"
    "toward|towards|under|underneath|until|up|upon|via|with|within|without",
    re.IGNORECASE,
)


def files_of(root: Path, *parts: str) -> list[Path]:
    return [path for part in parts for path in sorted((root / part).rglob("*.py"))]


def room_of(root: Path, path: Path) -> str:
    return ".".join(path.relative_to(root).parent.parts)


def module_of(root: Path, path: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> set[str]:
    """Dotted names of everything of ours that a file imports, at any depth of its code; a name out of a package counts with it."""
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.partition(".")[0] in ALL}


# --- rooms and arrows


def unknown_rooms(root: Path) -> Iterator[str]:
    """Files that lie in no room."""
    for path in files_of(root, *SHIPPED):
        if room_of(root, path) not in MAY_IMPORT:
            yield str(path.relative_to(root))


def turned_arrows(root: Path) -> Iterator[str]:
    """Imports that run against the arrows between rooms."""
    for path in files_of(root, *SHIPPED):
        for name in sorted(imported(path)):
            # `precompute.encode.image.ImageEncoder` lies in the room `precompute.encode`.
            room = name.split(".")
            while room and not root.joinpath(*room).is_dir():
                room.pop()
            if ".".join(room) not in MAY_IMPORT.get(room_of(root, path), ()):
                yield f"{path.relative_to(root)}: {name}"


def circles(root: Path) -> Iterator[str]:
    """Modules that import themselves by way of others."""
    files = {module_of(root, path): path for path in files_of(root, *PARTS)}
    left = {}
    for name, path in files.items():
        found = {n if n in files else n.rpartition(".")[0] for n in imported(path)}
        left[name] = found & files.keys() - {name}
    while free := [name for name, to in left.items() if not to & left.keys()]:
        for name in free:
            del left[name]
    while free := [name for name in left if not any(name in to for to in left.values())]:
        for name in free:
            del left[name]
    yield from sorted(left)


def strangers(root: Path) -> Iterator[str]:
    """What is no command in precompute/, and no dataset in builders/."""
    commands = (root / "precompute" / "commands.py").read_text(encoding="utf-8")
    verbs = set(re.findall(r'"precompute\.(\w+)"', commands))
    found = {path.stem for path in (root / "precompute").glob("*.py")}
    yield from sorted(found ^ (verbs | BESIDE_COMMANDS))
    for path in sorted((root / "builders").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if path.stem != "__init__" and "DEFAULT_CONFIG_NAME" not in text and "Builder)" not in text:
            yield str(path.relative_to(root))


def hidden_modules(root: Path) -> Iterator[str]:
    """A script's own folder comes first on its path: precompute/select.py would be what `import select` finds."""
    yield from sorted({path.stem for path in (root / "precompute").iterdir()} & set(sys.stdlib_module_names))


def missing_from_the_wheel(root: Path) -> Iterator[str]:
    """Folders with modules that are no packages."""
    packages = set(find_packages(str(root), include=[f"{part}*" for part in PARTS]))
    yield from sorted({room_of(root, path) for path in files_of(root, *PARTS)} - packages)


def missing_from_the_readme(root: Path) -> Iterator[str]:
    """The tree at the end of README has a line for each room; what it names is there."""
    tree = (root / "README.md").read_text(encoding="utf-8").partition("## The rooms")[2]
    tree = tree.partition("Apache-2.0")[0]
    for room in sorted({room_of(root, path) for path in files_of(root, *SHIPPED)}):
        if not re.search(rf"^ *{room.replace('.', '/')}/ ", tree, re.M):
            yield f"{room} is not in README's tree"
    for name in re.findall(r"\b[\w/]+\.(?:py|sh|toml|md)\b", tree):
        if not list(root.glob(f"**/{name}")):
            yield f"README's tree has {name}, the repository not"


# --- nouns and wires


def grown(root: Path) -> Iterator[str]:
    """Files and classes that are two nouns."""
    for path in files_of(root, *PARTS):
        if (lines := path.read_text(encoding="utf-8").count("\n")) > MOST_OF_A_FILE:
            yield f"{path.relative_to(root)}: {lines} lines"
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                size = (node.end_lineno or 0) - node.lineno + 1
                if size > MOST_OF_A_CLASS:
                    yield f"{path.relative_to(root)}: {node.name}, {size} lines"


def doubled_words(root: Path) -> Iterator[str]:
    """Classes of one name in two places."""
    places = defaultdict(list)
    for path in files_of(root, *PARTS):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef) and not FLAGS.fullmatch(node.name):
                places[node.name].append(str(path.relative_to(root)))
    yield from (f"{name}: {', '.join(where)}" for name, where in sorted(places.items()) if len(where) > 1)


def _assigned(node: ast.AST) -> Iterator[ast.expr]:
    targets: list[ast.expr] = []
    if isinstance(node, (ast.Assign, ast.Delete)):
        targets = node.targets
    elif isinstance(node, (ast.AugAssign, ast.AnnAssign, ast.For)):
        targets = [node.target]
    for target in targets:
        yield from target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]


def set_from_outside(root: Path) -> Iterator[str]:
    """Attributes of an object that another one sets."""
    for path in files_of(root, *PARTS):
        name = str(path.relative_to(root))
        for node in ast.walk(tree_of(path)):
            found = [ast.unparse(one) for one in _assigned(node) if isinstance(one, ast.Attribute)]
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "setattr":
                found = [f"{ast.unparse(node.args[0])}.{ast.unparse(node.args[1])}"]
            for target in found:
                own = re.fullmatch(r"(self|cls)\.\w+", target)
                if not own and target not in OF_OTHERS.get(name, ()):
                    yield f"{name}:{getattr(node, 'lineno', 0)}: {target}"


FILLS = {
    "append",
    "extend",
    "add",
    "update",
    "insert",
    "setdefault",
    "appendleft",
    "pop",
    "clear",
    "remove",
    "discard",
}
HOLDS = re.compile(r"(list|dict|set|deque|Counter|defaultdict|MutableSequence|MutableMapping|MutableSet)\b")


def filled(root: Path) -> Iterator[str]:
    """Lists and their like that a function is handed, and changes: it returns what it finds."""
    for path in files_of(root, *PARTS):
        for function in ast.walk(tree_of(path)):
            if not isinstance(function, ast.FunctionDef):
                continue
            arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
            handed = {
                one.arg for one in arguments if one.annotation and HOLDS.match(ast.unparse(one.annotation))
            }
            own = {ast.unparse(one) for node in ast.walk(function) for one in _assigned(node)}
            for node in ast.walk(function):
                found = [one.value for one in _assigned(node) if isinstance(one, ast.Subscript)]
                if isinstance(node, ast.AugAssign):
                    found.append(node.target)
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and node.func.attr in FILLS
                ):
                    found = [node.func.value]
                for one in found:
                    if (
                        isinstance(one, ast.Name)
                        and one.id in handed
                        and (one.id not in own or isinstance(node, ast.AugAssign))
                    ):
                        yield f"{path.relative_to(root)}:{getattr(node, 'lineno', 0)}: {function.name}, {one.id}"


def private_seams(root: Path) -> Iterator[str]:
    """Private names of ours that a test reads or patches."""
    ours = set()
    for path in files_of(root, *PARTS):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                ours.add(node.name)
            ours |= {ast.unparse(one).rpartition(".")[2] for one in _assigned(node)}
    ours = {name for name in ours if re.match(r"_[a-zA-Z]", name)} - HOOKS
    for path in files_of(root, "tests"):
        for node in ast.walk(tree_of(path)):
            found: list[str] = []
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls"):
                found = [node.attr]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PARTS:
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".setattr"):
                named = [one.value for one in node.args[:2] if isinstance(one, ast.Constant)]
                found = [str(value).rpartition(".")[2] for value in named]
            for name in found:
                if name in ours:
                    yield f"{path.relative_to(root)}:{getattr(node, 'lineno', 0)}: {name}"


# --- words


def comments_behind_brackets(root: Path) -> Iterator[str]:
    """Comments on a line that opens or closes a bracket alone: they stand above the statement."""
    for path in files_of(root, *ALL):
        lines = defaultdict(list)
        text = path.read_text(encoding="utf-8")
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
                lines[token.start[0]].append(token)
        for number, tokens in lines.items():
            *code, comment = tokens
            is_ours = comment.type == tokenize.COMMENT and not re.match(
                r"# (fmt|noqa|type):?", comment.string
            )
            if code and is_ours and (code[0].string in ")]}" or code[-1].string in "([{"):
                yield f"{path.relative_to(root)}:{number}: {comment.string}"


def docstrings_by_preposition(root: Path) -> Iterator[str]:
    """Docstrings that make sense under their name alone."""
    for path in files_of(root, *ALL):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)):
                said = (ast.get_docstring(node) or "x").split()
                if PREPOSITIONS.fullmatch(said[0]):
                    yield f"{path.relative_to(root)}:{getattr(node, 'lineno', 1)}: {' '.join(said[:6])}"


def unpickled(root: Path) -> Iterator[str]:
    """What people copy and unpickles what a tar holds: webdataset's own `.decode()`, of a member called `.pyd` or `.pickle`."""
    written = [root / "README.md", *root.glob("docs/*.md"), *files_of(root, "examples", "precompute")]
    for path in written:
        if re.search(r"WebDataset\([^\n]*\)\.decode\(", path.read_text(encoding="utf-8")):
            yield str(path.relative_to(root))


Rule = Callable[[Path], Iterator[str]]
RULES: tuple[Rule, ...] = (
    unknown_rooms,
    turned_arrows,
    circles,
    strangers,
    hidden_modules,
    missing_from_the_wheel,
    missing_from_the_readme,
    grown,
    doubled_words,
    set_from_outside,
    filled,
    private_seams,
    comments_behind_brackets,
    docstrings_by_preposition,
    unpickled,
)
