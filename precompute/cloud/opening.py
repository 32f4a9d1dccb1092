"""A store's client out of a URL and `--store-option NAME=VALUE`; what is not given comes from the environment."""

import re
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from obstore.exceptions import BaseError, UnknownConfigurationKeyError
from obstore.store import ObjectStore, from_url

from loader.store_options import split_option
from precompute.cloud.credentials import aws_credentials
from precompute.cloud.trouble import first_line
from precompute.errors import UsageError

WITHIN = timedelta(seconds=20)  # of tries that the client makes by itself, before it is our patience


def open_stores(
    flag: str, url: str, options: Iterable[str], timeouts: Iterable[timedelta]
) -> list[ObjectStore]:
    """Clients of obstore, one for each time that a request may take. flag: that named the URL, for messages.

    Raises UsageError.
    """
    place, config = f"{flag} {url}".strip(), dict[str, Any](store_config(options))
    extra: dict[str, Any] = {"retry_config": {"max_retries": 5, "retry_timeout": WITHIN}}
    if url.startswith("s3:") and "skip_signature" not in config and "access_key_id" not in config:
        provider, region = aws_credentials(place, config.pop("profile", None))
        if provider:
            extra["credential_provider"] = provider
        if region and "region" not in config:
            config["region"] = region
    opening: Any = from_url  # typed for one kind of store at a time
    limits = [{"timeout": timeout, "allow_http": True} for timeout in timeouts]
    try:
        return [opening(url.rstrip("/"), config=config, client_options=limit, **extra) for limit in limits]
    except UnknownConfigurationKeyError as error:
        name = (re.findall(r"'(\w+)'", str(error)) or ["?"])[0]
        raise UsageError(
            f"--store-option {name}=...: no such option; endpoint, region, profile, anonymous=true and those of "
            "obstore's client configuration are"
        ) from error
    except BaseError as error:
        raise UsageError(f"{place}: {first_line(error)}. Check the URL and --store-option") from error


def store_config(options: Iterable[str]) -> dict[str, str]:
    """`--store-option NAME=VALUE` in the words of the client. Raises UsageError, which never shows a value."""
    words = {"anonymous": "skip_signature", "endpoint_url": "endpoint"}
    try:
        return {words.get(name, name): value for name, value in map(split_option, options)}
    except ValueError as error:
        raise UsageError(str(error)) from error
