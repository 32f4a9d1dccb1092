"""What can go wrong in a build, as exceptions.

BuilderError                 everything below; the message says what was given and what cures it
├── UnknownBuilderError      no such builder      (also datasets' DatasetNotFoundError)
├── ConfigError              a config value       (also ValueError)
├── MissingSourceError       archives not there   (also FileNotFoundError)
├── ArchiveError             an archive that breaks off; a build counts it and goes on
├── AnnotationError          annotations that are damaged: without them every row would be rejected
├── DiskFullError            no room for what is looked up on disk (also OSError)
├── DownloadError            a fetch that failed for good
│   └── RefusedError         it takes other credentials, or a fresh link
└── NoRecordsError           nothing passed the gate (also ValueError)

A bad row is never an exception: it is a rejection with a reason (`base.REASONS`).
"""

from datasets.exceptions import DatasetNotFoundError


class BuilderError(Exception):
    """Base of every error that this package raises on purpose."""


class UnknownBuilderError(BuilderError, DatasetNotFoundError):
    """`load_dataset("builders/x")` with an x that is not registered."""


class ConfigError(BuilderError, ValueError):
    """A config value that cannot be used."""


class MissingSourceError(BuilderError, FileNotFoundError):
    """Archives or annotation files that are not where they should be."""


class ArchiveError(BuilderError):
    """The rest of an archive cannot be read."""


class AnnotationError(BuilderError):
    """A file of annotations that cannot be read."""


class DiskFullError(BuilderError, OSError):
    """No room beside the cache."""


class DownloadError(BuilderError):
    """A file that could not be fetched; what had arrived stays for the next try."""


class RefusedError(DownloadError):
    """A file that is there, and not for us: no token, terms not accepted, an expired link."""


class NoRecordsError(BuilderError, ValueError):
    """A split in which every source row was rejected."""
