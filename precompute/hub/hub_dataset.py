"""A dataset repository on the Hub, as something to push units to: whole after each commit."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import CommitOperationAdd, HfApi, get_token, hf_hub_download
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from loader.format import MANIFEST, NULL_CAPTION, Manifest, Split, recipe_differences
from precompute.errors import UsageError
from precompute.hub.dataset_card import Known, render_card, source_info
from precompute.hub.local_dataset import Finished, manifest_of_all
from precompute.hub.retry import PushError, Refusal, ask
from precompute.verification.check_folder import README, REPORT, SHEET

if TYPE_CHECKING:
    from precompute.push import Config

GO_ON = "look at its discussions, and go on with --revision refs/pr/NUMBER, or again with --create-pr"


class Target:
    """A dataset repository at a revision."""

    def __init__(self, config: "Config") -> None:
        self._config, self._api = config, HfApi()
        self._revision = config.revision

    @property
    def address(self) -> str:
        tree = f"/tree/{self._revision}" if self._revision else ""
        return f"{self._api.endpoint}/datasets/{self._config.repo}{tree}"

    def open(self) -> None:
        """Make repository and branch where they are missing. Raises UsageError for flags that cannot be."""
        config = self._config
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", config.repo):
            raise UsageError(f"{config.repo}: write the dataset as USER/REPO")
        if config.create_pr and config.delete_pushed:
            raise UsageError(
                "--delete-pushed: not with --create-pr, which others may reject; push to a branch"
            )
        if config.create_pr and config.revision:
            raise UsageError("--create-pr: not with --revision; a pull request is against main")
        if get_token() is None:
            raise PushError(
                f"{config.repo}: no token. Run `hf auth login`, or set HF_TOKEN to one that may write"
            )
        local = Finished.read(config.output)
        manifest = local.manifest or (manifest_of_all(local.markers) if local.markers else None)
        source = source_info(manifest) if manifest else Known()
        if source.forbids_sharing and not config.private:
            raise UsageError(
                f"--private: the licence of the source says: {source.licence}. Push with --private"
            )
        ask(
            self._config.repo,
            lambda: self._api.create_repo(
                config.repo, repo_type="dataset", private=config.private or None, exist_ok=True
            ),
        )
        if config.private and not ask(config.repo, lambda: self._api.dataset_info(config.repo)).private:
            raise UsageError(
                f"--private: {config.repo} is there already, and public. Make it private in its settings, or name another"
            )
        if config.revision and not config.revision.startswith("refs/"):
            branch = config.revision
            ask(
                self._config.repo,
                lambda: self._api.create_branch(
                    config.repo, repo_type="dataset", branch=branch, exist_ok=True
                ),
            )

    def push(self, local: Finished, final: bool) -> bool:
        """Bring the Hub up to date with what is finished; whether anything was sent. final: even if it is the card alone."""
        remote = self._list()
        before = self._remote_manifest(local, remote)
        missing = _missing(local, remote)
        there = [stem for stem in local.markers if stem not in missing]
        if self._config.delete_pushed:
            self._delete(local, there)
        sent = False
        for batch in local.batches(list(missing)):
            there += batch
            self._commit(local, {stem: missing[stem] for stem in batch}, there, before, remote)
            if self._config.delete_pushed:
                self._confirm(local, batch)
                self._delete(local, batch)
            sent = True
        if final and not sent:
            sent = self._commit(local, {}, there, before, remote)
        return sent

    def has(self, local: Finished) -> bool:
        """Whether the Hub has all that is finished."""
        return not _missing(local, self._list())

    # --- one commit ---

    def _commit(
        self,
        local: Finished,
        missing: dict[str, list[str]],
        there: list[str],
        before: Manifest | None,
        remote: dict[str, RepoFile],
    ) -> bool:
        """Commit the units in `missing` and what goes with them; False where nothing has changed."""
        manifest = manifest_of_all({stem: local.markers[stem] for stem in sorted(there)})
        for name, split in before.splits.items() if before else ():  # pushed from another folder
            manifest.splits.setdefault(name, split)
        for name, split in local.manifest.splits.items() if local.manifest else ():  # planned
            manifest.splits.setdefault(name, Split(split.plan, 0, (), {}))
        contents: dict[str, bytes] = {MANIFEST: manifest.to_json().encode()}
        for name in (NULL_CAPTION, SHEET, REPORT):
            if (local.folder / name).exists():
                contents[name] = (local.folder / name).read_bytes()
        sheet = SHEET in contents or SHEET in remote
        contents[README] = render_card(
            manifest, self._config.repo, self._read(README, remote), sheet
        ).encode()
        units, size = len(missing), sum(local.size(stem) for stem in missing)
        if not missing and all(_is(remote.get(name), data) for name, data in contents.items()):
            return False
        message = f"Add {units} units, {size / 1e9:.2f} GB" if units else "Update manifest and card"
        opens_pr = self._config.create_pr and self._revision is None
        tried = False

        def commit() -> None:
            nonlocal tried
            if tried and opens_pr:
                raise PushError(
                    f"{self.address}: the connection was lost while the pull request was opened; {GO_ON}"
                )
            if tried and _is(self._list().get(MANIFEST), contents[MANIFEST]):
                return  # the Hub had taken it before the connection was lost
            tried = True
            info = self._api.create_commit(
                self._config.repo,
                [*self._additions(local, missing), *(CommitOperationAdd(n, d) for n, d in contents.items())],
                commit_message=message,
                repo_type="dataset",
                revision=self._revision,
                create_pr=opens_pr,
            )
            if info.pr_revision:
                self._revision = info.pr_revision

        ask(self._config.repo, commit)
        print(f"{self.address}: {message}; {len(there)} units are there", flush=True)
        return True

    def _additions(self, local: Finished, missing: dict[str, list[str]]) -> Iterator[CommitOperationAdd]:
        """The files of some units, each held against the hash that its marker has."""
        for stem, names in missing.items():
            hashes = local.files(stem)
            for name in names:
                path = local.folder / name
                if not path.exists():
                    raise PushError(
                        f"{path}: neither here nor on the Hub. Remove {stem}.json and run precompute/run.py again"
                    )
                addition = CommitOperationAdd(local.hub_path(stem, name), str(path))
                if hashes[name] is not None and addition.upload_info.sha256.hex() != hashes[name]:
                    raise PushError(
                        f"{path}: not what was written (its sha256 differs). Run precompute/verify.py"
                    )
                yield addition

    def _confirm(self, local: Finished, stems: list[str]) -> None:
        """Raises PushError unless the Hub says that it has every file of these units."""
        remote = self._list()
        for stem in stems:
            for name, sha256 in local.files(stem).items():
                if not _same(local.folder / name, sha256, remote.get(local.hub_path(stem, name))):
                    raise PushError(
                        f"{name}: the Hub has something else. Nothing was deleted; run the same command again"
                    )

    def _delete(self, local: Finished, stems: list[str]) -> None:
        """Remove the tars of units that the Hub has, but for those done again since `local` was read."""
        for stem in stems:
            if not local.is_current(stem):
                continue
            for shard in local.markers[stem].shards:
                (local.folder / f"{shard.name}.tar").unlink(missing_ok=True)

    # --- reading the Hub ---

    def _list(self) -> dict[str, RepoFile]:
        def tree() -> dict[str, RepoFile]:
            entries = self._api.list_repo_tree(
                self._config.repo, recursive=True, repo_type="dataset", revision=self._revision
            )
            return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

        return ask(self._config.repo, tree)

    def _read(self, name: str, remote: dict[str, RepoFile]) -> str:
        if name not in remote:
            return ""

        def read() -> str:
            revision = self._revision or "main"
            path = hf_hub_download(self._config.repo, name, repo_type="dataset", revision=revision)
            return Path(path).read_text(encoding="utf-8")

        return ask(self._config.repo, read)

    def _remote_manifest(self, local: Finished, remote: dict[str, RepoFile]) -> Manifest | None:
        """The manifest that is there. Raises Refusal where it is of another recipe or plan."""
        text = self._read(MANIFEST, remote)
        if not text:
            return None
        theirs, ours = Manifest.from_json(text), manifest_of_all(local.markers)
        wrong = recipe_differences(theirs.recipe, ours.recipe)
        for name in theirs.splits.keys() & ours.splits.keys():
            wrong += recipe_differences(theirs.splits[name].plan, ours.splits[name].plan, "plan")
        if wrong:
            lines = "\n  ".join(wrong)
            raise Refusal(
                f"{self._config.repo}: it holds shards of another recipe:\n  {lines}\nName another dataset or --revision"
            )
        return theirs


def _missing(local: Finished, remote: dict[str, RepoFile]) -> dict[str, list[str]]:
    """The files that the Hub has not, or has otherwise, by unit."""
    missing = {}
    for stem in local.markers:
        files = local.files(stem).items()
        names = [
            name
            for name, sha256 in files
            if not _same(local.folder / name, sha256, remote.get(local.hub_path(stem, name)))
        ]
        if names:
            missing[stem] = names
    return missing


def _same(path: Path, sha256: str | None, there: RepoFile | None) -> bool:
    """Whether the Hub has this file: by the sha256 that its marker has, or else by its contents."""
    if there is None:
        return False
    if sha256 is not None and there.lfs is not None:
        return bool(there.lfs.sha256 == sha256)
    return _is(there, path.read_bytes()) if path.exists() else False


def _is(there: RepoFile | None, data: bytes) -> bool:
    if there is None or there.size != len(data):
        return False
    if there.lfs is not None:
        return bool(CommitOperationAdd("x", data).upload_info.sha256.hex() == there.lfs.sha256)
    return bool(there.blob_id == git_hash(data))
