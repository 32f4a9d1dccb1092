"""Shards on a disk: units written whole or not at all, markers, the manifest, samples read again."""
