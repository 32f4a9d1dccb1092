"""What a store answers that is no success: waited out where it may pass, else one line with the cure."""

import re

from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

from builders.archives import backoff
from precompute.errors import OutputError

EXPIRED = {"ExpiredToken", "TokenRefreshRequired", "RequestExpired", "ExpiredTokenException"}
NO_BUCKET = {"NoSuchBucket", "ContainerNotFound"}
UNKNOWN_KEY = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AuthenticationFailed"}
# A HEAD's answer has no body, and so no code.
BARE = re.compile(r"S3 error: Error performing HEAD .*status code: 400")
REFUSED = (PermissionDeniedError, UnauthenticatedError, NotImplementedError)


class StoreError(OutputError, OSError):
    """The object store refuses, or has been out of reach for longer than patience lasts."""


class Trouble:
    """Says what is the matter with a place. place: the flag and the URL. writes: whether more than reading is asked of it."""

    def __init__(self, place: str, writes: bool = True) -> None:
        self._place = place
        self._writes = writes
        self._rights = "read, write, delete and list" if writes else "read and list"
        self._kept = "Nothing finished is lost: mend" if writes else "Mend"
        self._over = False  # patience was in vain once: others do not wait as long again

    def passed(self) -> None:
        """Patience is as long as ever once the place has answered."""
        self._over = False

    def wait(self, patience: backoff.Patience, error: Exception) -> None:
        """Wait before the next try. Raises StoreError where there shall be none."""
        status = int((re.findall(r"status code: (\d{3})", str(error)) or ["0"])[0])
        passing = not status or status in (409, 412) or (backoff.status_may_pass(status) and status != 501)
        if isinstance(error, REFUSED) or not passing:
            raise self.explained(error) from error
        if self._over or not patience.wait(f"{self._place}: {first_line(error)}"):
            self._over = True
            raise self.explained(error) from error

    def explained(self, error: Exception) -> StoreError:
        code = code_of(error)
        if isinstance(error, NotImplementedError) or code == "NotImplemented":
            return self.no_conditions()
        if code in NO_BUCKET:
            return self._error(
                "there is no such bucket", f"{'Make it, or name' if self._writes else 'Name'} another"
            )
        if code in EXPIRED or BARE.search(str(error)):
            cure = "Renew them, as by `aws sso login`, and run the same command again"
            return self._error("the credentials have expired", cure)
        if code in UNKNOWN_KEY or isinstance(error, UnauthenticatedError):
            cure = "Check those of the environment, the profile, and --store-option endpoint=..."
            return self._error("the credentials are not accepted", cure)
        # A listing's refusal is of no kind.
        if isinstance(error, PermissionDeniedError) or "status code: 403" in str(error):
            cure = f"They must {self._rights} there: ask for that, or name another place"
            return self._error(f"the credentials give no right to this ({code or 'denied'})", cure)
        return self._error(first_line(error), f"{self._kept} that and run again")

    def no_conditions(self) -> StoreError:
        lack = "this store has no conditional writes (If-None-Match, If-Match), by which processes meet"
        return self._error(lack, "Write to a folder, or to another store")

    def _error(self, what: str, cure: str) -> StoreError:
        return StoreError(f"{self._place}: {what}. {cure}")


def code_of(error: Exception) -> str:
    """The store's word for it, such as NoSuchBucket; empty where it has none."""
    return (re.findall(r"<Code>(\w+)</Code>", str(error)) or [""])[0]


def first_line(error: Exception) -> str:
    """What an error says without its inside: the server's status and code where it has answered."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    said = re.search(r"status code: (\d{3} [\w ]+)", line)
    if said is not None:
        return f"{said[1]} ({code_of(error)})" if code_of(error) else said[1]
    return line.rpartition(" - ")[2][:200].rstrip(". ")
