"""What a token may do, asked before any work: read a gated dataset, write below a name. Each lack is a line with its cure."""

from collections.abc import Iterator

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HTTPError, RepositoryNotFoundError

UNREACHABLE = (HTTPError, OSError)


def reading_lacks(repository: str) -> Iterator[str]:
    """What keeps a dataset on the Hub from being read. Nothing is said where the Hub cannot be reached."""
    cure = f"accept the terms at {constants.ENDPOINT}/datasets/{repository} and run `hf auth login`"
    if get_token() is None:
        yield f"{repository}: it is gated, and there is no token; {cure}"
        return
    try:
        HfApi().auth_check(repository, repo_type="dataset")
    except (GatedRepoError, RepositoryNotFoundError):
        yield f"{repository}: this token may not read it; {cure}"
    except UNREACHABLE:
        return


def writing_lacks(flag: str, owner: str) -> Iterator[str]:
    """What keeps datasets from being pushed below a user or an organisation."""
    if get_token() is None:
        yield f"{flag} {owner}: no token. Run `hf auth login`, or set HF_TOKEN to one that may write"
        return
    try:
        told = HfApi().whoami()
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code == 401:
            yield f"{flag} {owner}: the Hub does not accept this token. Run `hf auth login` again"
        return
    except UNREACHABLE:
        return
    names = [told["name"], *(organisation["name"] for organisation in told.get("orgs", []))]
    if owner not in names:
        yield f"{flag} {owner}: this token writes to {', '.join(names)}; name one of them, or take another token"
