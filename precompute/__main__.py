"""`latentmill VERB ...`, from any directory: what `python precompute/VERB.py` does in a checkout.

latentmill verify latents/cc12m
"""

import difflib
import importlib
import os
import sys

from precompute.commands import PROGRAM, VERBS, flags_of, help_text, manual, parse


def main() -> None:
    """Start one verb under its own name. An unknown one is answered with those that there are."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(help_text())
        sys.exit(0 if len(sys.argv) > 1 else 2)
    verb = sys.argv[1]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(VERBS)}"
        print(f"error: {PROGRAM} {verb}: no such verb; {hint}", file=sys.stderr)
        sys.exit(2)
    sys.argv[:2] = [f"{PROGRAM} {verb}"]
    module = VERBS[verb][0]
    try:
        # Flags are read first: what the verb itself imports takes seconds.
        given = [parse(verb, flags_of(verb), manual(verb))] if module.startswith("precompute.") else []
        sys.exit(importlib.import_module(module).main(*given))
    except BrokenPipeError:  # of `latentmill run --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
