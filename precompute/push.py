"""Shards to the Hub: resumable, in few commits, each of which leaves a whole dataset there.

    python precompute/push.py latents/cc12m USER/cc12m-latents
    python precompute/push.py latents/cc12m USER/cc12m-latents --follow

A commit holds some finished units and the manifest of exactly the units that are then there, so a reader never meets a
manifest that names a missing shard, nor a shard that no manifest names: what a unit left behind is deleted in the same
commit, and units that others have pushed stay. What is on the Hub already, by its sha256, is not sent again: after any
failure run the same command again. The token comes from `hf auth login` or HF_TOKEN.
"""

from precompute.commands import parse
from precompute.errors import one_line_errors
from precompute.hub.push_loop import Config, push

__all__ = ["Config", "main", "push"]


def main(config: Config | None = None) -> None:
    config = config or parse("push", Config, __doc__)
    with one_line_errors():
        print(push(config))


if __name__ == "__main__":
    main()
