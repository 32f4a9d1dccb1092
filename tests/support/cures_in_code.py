"""The places of the code whose messages name a command, each as a pattern by which it is known again in what was said."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

NAMING = {"command", "launched", "retyped"}


def places(root: Path) -> Iterator[tuple[str, re.Pattern[str]]]:
    """`precompute/x.py: the words around the command`, and what such a message is like, of each file below `root`."""
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            if typed := re.search(r"[^\n]{1,40}(?<!\n)`latentmill [a-z]+", text):
                yield f"{path.relative_to(root.parent)}: {typed[0]}", re.compile(re.escape(typed[0]))
            parts = node.values if isinstance(node, ast.JoinedStr) else []
            for place, part in enumerate(parts):
                if isinstance(part, ast.FormattedValue) and _names_a_command(part.value):
                    before = parts[place - 1] if place else None
                    after = parts[place + 1] if place + 1 < len(parts) else None
                    around = [one.value if isinstance(one, ast.Constant) else "" for one in (before, after)]
                    front, back = str(around[0])[-40:], str(around[1])[:40]
                    pattern = f"{re.escape(front)}.{{1,1000}}?{re.escape(back)}"
                    yield (
                        f"{path.relative_to(root.parent)}: {front}COMMAND{back}",
                        re.compile(pattern, re.IGNORECASE),
                    )


def _names_a_command(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") in NAMING
