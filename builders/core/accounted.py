"""A builder that keeps the account of its rows, whichever way it is read, and tells it at the end of each split."""

import json
import os
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import datasets

from builders.core.account import Account, Left
from builders.core.config import ImageCaptionConfig
from builders.core.counted_examples import CountedExamples
from builders.core.errors import NoRecordsError
from builders.core.joined_captions import JoinedCaptions, open_captions
from builders.core.log import logger


class AccountedBuilder(datasets.GeneratorBasedBuilder):
    """Counts rows by outcome: `_generate_examples` takes the account, the parent of all jobs sums and shows it."""

    config: ImageCaptionConfig
    # Split -> its account, of those that this build found empty.
    _without_records: Mapping[str, str] = MappingProxyType({})

    # --- the account: jobs leave their counts in the folder that the build writes to, the parent sums and shows them ---------------

    def _prepare_split_single(
        self, gen_kwargs: dict[str, Any], *args: Any, job_id: int, **kwargs: Any
    ) -> Iterator[tuple[int, bool, Any]]:
        account = Account()
        for item in super()._prepare_split_single(
            {**gen_kwargs, "account": account}, *args, job_id=job_id, **kwargs
        ):
            if item[1]:  # the job is done
                with open(self._account_path(gen_kwargs["split"], job_id), "w", encoding="utf-8") as file:
                    json.dump(account.as_json(), file)
            yield item

    def _prepare_split(self, split_generator: datasets.SplitGenerator, *args: Any, **kwargs: Any) -> None:
        super()._prepare_split(split_generator, *args, **kwargs)
        split, job, account = split_generator.name, 0, Account()
        while os.path.exists(path := self._account_path(split, job)):
            with open(path, encoding="utf-8") as file:
                account.add(Account(**json.load(file)))
            os.remove(path)
            job += 1
        with open(self._account_path(split), "w", encoding="utf-8") as file:
            json.dump(account.as_json(), file)
        try:
            self._report(split_generator.gen_kwargs, account)
        except NoRecordsError as error:
            # It must not cost the other splits: as_dataset raises it where this one is asked for.
            logger.warning(str(error))
            self._without_records = {**self._without_records, split: str(error)}

    def as_dataset(self, split: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Build the dataset as `datasets` does, of all splits those that hold records.

        Raises NoRecordsError where the split, or every one, holds none.
        """
        of_split, known = super().as_dataset, self.info.splits or {}
        empty = [name for name, part in known.items() if not part.num_examples]
        if empty and (str(split) in empty or (split is None and len(empty) == len(known))):
            raise NoRecordsError("; ".join(map(self._why_empty, empty)))
        if empty and split is None:
            for name in set(empty) - set(self._without_records):
                logger.warning(self._why_empty(name))
            full = (name for name in known if name not in empty)
            return datasets.DatasetDict({name: of_split(name, *args, **kwargs) for name in full})
        return of_split(split, *args, **kwargs)

    def _why_empty(self, split: str) -> str:
        return self._without_records.get(split) or (
            f"no records. {self.name}/{self.config.name} {split}: every source row was rejected; "
            "keep_rejected=True gives them with their reasons"
        )

    def account(self, split: str) -> Account:
        """The account of a split that has been built, now or when its cache was."""
        with open(self._account_path(split), encoding="utf-8") as file:
            return Account(**json.load(file))

    def _account_path(self, split: str, job: int | None = None) -> str:
        """Name the account's file in the folder of the cache: that of a split, and while it is built that of each of its jobs."""
        return f"{self._output_dir}/{split}{'' if job is None else f'-{job:05d}'}.account.json"

    def _get_examples_iterable_for_split(self, split_generator: datasets.SplitGenerator) -> CountedExamples:
        return CountedExamples(self._generate_examples, split_generator.gen_kwargs)

    def left_out(self, split: str, shard: Any) -> Mapping[str, Left]:
        """What belongs to no row, by reason out of LEFT_OUT: in this shard and, with the first one, in the split.

        Call it when the shard has been read to its end.
        """
        return {}

    def joined_captions(self) -> list[JoinedCaptions]:
        """The files of captions from elsewhere, each joined on disk by whoever comes first. Raises ConfigError."""
        files, hashes = self.config.captions_from or {}, self.config.captions_sha256 or {}
        folder = os.path.join(self._cache_dir_root, "builders_joins")
        has_url = not {"url", "json"}.isdisjoint(self.info.features)
        return [
            open_captions(name, file, hashes[name], folder, self.hash, self.token, has_url)
            for name, file in files.items()
        ]

    def _report(self, read: Mapping[str, Any], account: Account, resumed: bool = False) -> None:
        """`read`: the gen_kwargs that have been read to the end, of all shards or of some."""
        summary = f"{self.name}/{self.config.name} {read['split']}: "
        whole = len(read["shards"]) == read["num_shards"] and not resumed
        told = [account.told_left()]
        # Whoever asks for the rejected rows counts them, and reads part by part.
        if whole or not self.config.keep_rejected:
            files = {file.name: len(file.join) for file in self.joined_captions()}
            told.append(account.told_captions(files, whole))
        if not self.config.keep_rejected:
            told.insert(0, account.told_rows())
            if not account.rows["ok"] and whole:
                raise NoRecordsError(f"no records. {summary}{told[0]}")
        if any(told):
            logger.warning(summary + "; ".join(filter(None, told)))
