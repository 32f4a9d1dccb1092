"""Files above what S3 takes in one request: sent in parts, and made visible by one conditional request, which is the last.

Parts of an upload that was broken off are seen by nobody, but cost as if they were: whoever finishes the unit aborts it.
"""

import contextlib
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError

from builders.archives import backoff
from loader.store_options import S3, storage_options
from precompute.cloud.objects import PROBE, TRIES
from precompute.errors import UsageError

T = TypeVar("T")

logger = logging.getLogger("precompute")

PART, MOST = 64 << 20, 10_000  # bytes of a part at least, and parts of a file
SENDERS = 4  # parts on their way at once


class Ask(Protocol):
    """Repeats a request while that may help."""

    def __call__(self, call: Callable[[], T], conflicts: tuple[type[Exception], ...] = ()) -> T: ...


class Multipart:
    """Uploads in parts below an s3:// URL, by botocore, for obstore has no conditions there. Errors are obstore's."""

    def __init__(self, url: str, options: Iterable[str], ask: Ask) -> None:
        self._bucket, _, self._prefix = url.removeprefix("s3://").strip("/").partition("/")
        self._url, self._options, self._ask = url, tuple(options), ask
        self._opened: Any = None
        self._opening = threading.RLock()

    def create(self, key: str, data: memoryview) -> dict[str, Any]:
        """Make an object that is not there. Raises AlreadyExistsError where one is, or became ours and the answer was lost."""
        place = {"Bucket": self._bucket, "Key": f"{self._prefix}/{key}"}
        upload = self._call("create_multipart_upload", **place)["UploadId"]
        done = False
        try:
            size = max(PART, -(-len(data) // MOST))
            pieces = [
                (number, data[start : start + size])
                for number, start in enumerate(range(0, len(data), size), 1)
            ]
            with backoff.pool(SENDERS, "part") as pool:
                parts = list(pool.map(lambda piece: self._send(place, upload, *piece), pieces))
            answer = self._complete(place, upload, parts)
            done = True
        finally:
            if not done:
                self._abort(place["Key"], upload)
        return {"e_tag": answer.get("ETag"), "version": None}

    @property
    def in_use(self) -> bool:
        """Whether this process has sent a file in parts."""
        return self._opened is not None

    def sweep(self, stem: str) -> None:
        """Abort what was begun for files of a finished unit."""
        prefix = f"{self._prefix}/{stem}"
        with contextlib.suppress(BaseError, OSError):
            found = self._call("list_multipart_uploads", Bucket=self._bucket, Prefix=prefix)
            for upload in found.get("Uploads", []):
                if not upload["Key"][len(prefix) :][:1].isdigit():
                    self._abort(upload["Key"], upload["UploadId"])

    def _send(self, place: dict[str, str], upload: str, number: int, piece: memoryview) -> dict[str, Any]:
        answer = self._call("upload_part", **place, UploadId=upload, PartNumber=number, Body=bytes(piece))
        sums = {name: value for name, value in answer.items() if name.startswith("Checksum")}
        return {"PartNumber": number, "ETag": answer["ETag"], **sums}

    def _complete(self, place: dict[str, str], upload: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
        whole = {"UploadId": upload, "MultipartUpload": {"Parts": parts}, "IfNoneMatch": "*"}
        return self._call("complete_multipart_upload", **place, **whole)

    def _abort(self, key: str, upload: str) -> None:
        try:
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload)
        except Exception as error:  # noqa: BLE001  what was the matter before is what is told
            if "NoSuchUpload" not in str(error):
                logger.warning(
                    "s3://%s/%s: parts of an upload stay there until it is aborted", self._bucket, key
                )

    @property
    def _client(self) -> Any:
        """A client, once it is sure that the store looks at conditions here too. Raises UsageError."""
        with self._opening:
            if self._opened is None:
                self._opened = _client(self._url, self._options)
                try:
                    self._try_out()
                except BaseException:
                    self._opened = None
                    raise
            return self._opened

    def _try_out(self) -> None:
        if not any(self._honours() for _ in range(TRIES)):
            raise UsageError(
                f"{self._url}: this store takes no conditions (If-None-Match) for files above 5 GB. "
                "Give a smaller --samples-per-shard"
            )

    def _honours(self) -> bool:
        place = {"Bucket": self._bucket, "Key": f"{self._prefix}/{PROBE}-{secrets.token_hex(8)}"}
        self._call("put_object", **place, Body=b"1")
        upload = self._call("create_multipart_upload", **place)["UploadId"]
        try:
            self._complete(place, upload, [self._send(place, upload, 1, memoryview(b"2"))])
        except AlreadyExistsError:
            return True
        finally:
            self._abort(place["Key"], upload)
            self._call("delete_object", **place)
        return False

    def _call(self, name: str, **given: Any) -> dict[str, Any]:
        client = self._client

        def call() -> dict[str, Any]:
            with _as_obstore():
                return dict(getattr(client, name)(**given))

        return self._ask(call, (AlreadyExistsError,))


def _client(url: str, options: Iterable[str]) -> Any:
    try:
        import botocore.session
        from botocore import UNSIGNED
        from botocore.config import Config
    except ImportError:
        raise UsageError(
            f"{url}: a file above 5 GB needs botocore; run `pip install 'latentmill[cloud]'`, or give a smaller --samples-per-shard"
        ) from None
    known = [option for option in options if option.partition("=")[0].removeprefix("aws_") in S3]
    given = storage_options(url, known)
    config = Config(
        retries={"max_attempts": 5, "mode": "standard"},
        signature_version=UNSIGNED if given.get("anon") else None,
        **given.get("config_kwargs", {}),
    )
    return botocore.session.Session(profile=given.get("profile")).create_client(
        "s3",
        endpoint_url=given.get("endpoint_url") or os.environ.get("AWS_ENDPOINT"),
        region_name=given.get("client_kwargs", {}).get("region_name"),
        aws_access_key_id=given.get("key"),
        aws_secret_access_key=given.get("secret"),
        aws_session_token=given.get("token"),
        config=config,
    )


@contextlib.contextmanager
def _as_obstore() -> Iterator[None]:
    """What botocore raises in the words of obstore, which trouble.py reads."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        said = f"Server returned non-2xx status code: {status} {code}: <Code>{code}</Code>"
        # An upload that is gone was completed, and the answer was lost: its object is there.
        conflict = status in (409, 412) or code == "NoSuchUpload"
        kind = AlreadyExistsError if conflict else PermissionDeniedError if status == 403 else BaseError
        raise kind(said) from error
    except BotoCoreError as error:
        raise BaseError(str(error)) from error
