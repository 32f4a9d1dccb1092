"""A dataset repository on the Hub at one revision: made, listed, read, committed to."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_token,
    hf_hub_download,
)
from huggingface_hub.errors import HFValidationError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash

from builders.archives import backoff
from loader.printable import printable
from precompute.errors import UsageError
from precompute.hub.retry import PushError, ask

READERS = 8  # small files read at once
ADDRESS = re.compile(r"(?:https?://[^/]+/|hf://)?(?:datasets/)?(?P<repo>[^/@?#]+/[^/@?#]+)(?:[/@?#].*)?")


@dataclass(frozen=True)
class Snapshot:
    """What a repository holds at the commit `head`: files by their path."""

    head: str
    files: dict[str, RepoFile]


class Repository:
    """A dataset repository. revision: a branch or refs/pr/N; None for main. Raises UsageError for a name that none can have."""

    def __init__(self, name: str, revision: str | None) -> None:
        check_repo_name(name)
        self.name, self.revision, self._api = name, revision, HfApi()
        self._read: dict[str, bytes] = {}  # by blob: markers are asked for before each commit

    @property
    def address(self) -> str:
        tree = f"/tree/{self.revision}" if self.revision else ""
        return f"{self._api.endpoint}/datasets/{self.name}{tree}"

    def make(self, private: bool) -> None:
        """Make repository and branch where they are missing. Raises PushError; UsageError where it would not be private."""
        if get_token() is None:
            raise PushError(
                f"{self.name}: no token. Run `hf auth login`, or set HF_TOKEN to one that may write"
            )
        ask(
            self.name,
            lambda: self._api.create_repo(
                self.name, repo_type="dataset", private=private or None, exist_ok=True
            ),
        )
        if private and not ask(self.name, lambda: self._api.dataset_info(self.name)).private:
            raise UsageError(
                f"--private: {self.name} is there already, and public. Make it private in its settings, or name another"
            )
        if self.revision and not self.revision.startswith("refs/"):
            branch = self.revision
            ask(
                self.name,
                lambda: self._api.create_branch(self.name, repo_type="dataset", branch=branch, exist_ok=True),
            )

    def snapshot(self) -> Snapshot:
        """All files, as of one commit."""

        def look() -> Snapshot:
            head = self._api.dataset_info(self.name, revision=self.revision, expand=["sha"]).sha
            entries = self._api.list_repo_tree(
                self.name, recursive=True, repo_type="dataset", revision=head or self.revision
            )
            files = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
            return Snapshot(str(head), files)

        return ask(self.name, look)

    def read(self, snapshot: Snapshot, path: str) -> bytes:
        """The contents of a file; none where there is no such file."""
        if path not in snapshot.files:
            return b""
        blob = snapshot.files[path].blob_id
        if blob in self._read:
            return self._read[blob]

        def fetch() -> bytes:
            local = hf_hub_download(self.name, path, repo_type="dataset", revision=snapshot.head)
            return Path(local).read_bytes()

        self._read[blob] = data = ask(self.name, fetch)
        return data

    def read_many(self, snapshot: Snapshot, paths: Iterable[str]) -> dict[str, bytes]:
        """The contents of files by path, several fetched at once."""
        wanted = list(paths)
        with backoff.pool(READERS, "read") as pool:
            return dict(zip(wanted, pool.map(lambda path: self.read(snapshot, path), wanted), strict=True))

    def commit(
        self,
        operations: Sequence[CommitOperationAdd | CommitOperationDelete],
        message: str,
        parent: str,
        opens_pr: bool,
    ) -> None:
        """One commit on top of `parent`. Raises what the client raises: 412 where somebody else has committed since."""
        info = self._api.create_commit(
            self.name,
            list(operations),
            commit_message=message,
            repo_type="dataset",
            revision=self.revision,
            create_pr=opens_pr,
            parent_commit=parent,
        )
        if info.pr_revision:
            self.revision = info.pr_revision


def check_repo_name(name: str) -> None:
    """Raises UsageError with the name that was meant, where it can be told."""
    try:
        validate_repo_id(name)
        if name.count("/") != 1:
            raise HFValidationError("it has no owner" if "/" not in name else "it has more than one /")
    except HFValidationError as error:
        meant = ADDRESS.fullmatch(name)
        cure = f"here {meant['repo']}" if meant and meant["repo"] != name else "as its page on the Hub has it"
        first = printable(str(error).splitlines()[0])
        raise UsageError(f"{json.dumps(name)}: write the dataset as USER/REPO, {cure} ({first})") from error


def is_same(there: RepoFile | None, data: bytes) -> bool:
    """Whether a file on the Hub has these contents, by the hash that the Hub keeps."""
    if there is None or there.size != len(data):
        return False
    if there.lfs is not None:
        return bool(CommitOperationAdd("x", data).upload_info.sha256.hex() == there.lfs.sha256)
    return bool(there.blob_id == git_hash(data))
