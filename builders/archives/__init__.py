"""Archives and annotations read where they lie: on a disk, in a download, by ranges of a URL."""
