"""Output to an object store: what a folder is to processes that share a disk, by conditional writes alone."""
