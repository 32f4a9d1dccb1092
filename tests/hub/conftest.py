"""The tests of the Hub share the made-up shards of the tests of precompute."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "precompute"))
