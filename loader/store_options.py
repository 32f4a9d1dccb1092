"""`--store-option NAME=VALUE`, in the words of precompute's client, as the `storage_options` of fsspec's file systems.

storage_options("s3://bucket/latents", ["endpoint=https://HOST", "region=auto"])
"""

import json
import urllib.parse
from collections.abc import Callable, Iterable
from typing import Any

Option = Callable[[str], dict[str, Any]]


def _as(name: str) -> Option:
    return lambda value: {name: value}


def _flag(yes: dict[str, Any]) -> Option:
    return lambda value: yes if value.lower() in ("true", "1", "yes") else {}


ANONYMOUS = ("anonymous", "skip_signature")
# By scheme: of s3fs, gcsfs and adlfs. A word may stand there with the cloud's name before it, as in aws_region.
S3: dict[str, Option] = {
    "endpoint": _as("endpoint_url"),
    "endpoint_url": _as("endpoint_url"),
    "region": lambda value: {"client_kwargs": {"region_name": value}},
    "access_key_id": _as("key"),
    "secret_access_key": _as("secret"),
    "session_token": _as("token"),
    "token": _as("token"),
    "profile": _as("profile"),
    "virtual_hosted_style_request": _flag({"config_kwargs": {"s3": {"addressing_style": "virtual"}}}),
    **dict.fromkeys(ANONYMOUS, _flag({"anon": True})),
}
GS: dict[str, Option] = {
    "service_account": _as("token"),
    "service_account_path": _as("token"),
    "application_credentials": _as("token"),
    "service_account_key": lambda value: {"token": json.loads(value)},
    **dict.fromkeys(ANONYMOUS, _flag({"token": "anon"})),
}
AZ: dict[str, Option] = {
    "account_name": _as("account_name"),
    "account_key": _as("account_key"),
    "access_key": _as("account_key"),
    "sas_token": _as("sas_token"),
    "sas_key": _as("sas_token"),
    "tenant_id": _as("tenant_id"),
    "client_id": _as("client_id"),
    "client_secret": _as("client_secret"),
    "endpoint": lambda value: {"account_host": urllib.parse.urlsplit(value).netloc},
    **dict.fromkeys(ANONYMOUS, _flag({"anon": True})),
}
SCHEMES = {"s3": (S3, "aws_"), "gs": (GS, "google_"), "az": (AZ, "azure_storage_")}


def split_option(option: str) -> tuple[str, str]:
    """Raises ValueError for what is not NAME=VALUE."""
    name, equals, value = option.partition("=")
    if not equals or not name:
        raise ValueError("--store-option: give NAME=VALUE, as in endpoint=https://HOST or region=auto")
    return name, value


def storage_options(url: str, options: Iterable[str]) -> dict[str, Any]:
    """What fsspec's file system for the URL takes. Raises ValueError, which shows no value."""
    known, prefix = SCHEMES.get(url.partition("://")[0], ({}, ""))
    found: dict[str, Any] = {}
    for option in options:
        name, value = split_option(option)
        if not known:
            raise ValueError("--store-option: only with a store, as in s3://BUCKET/PREFIX")
        word = name.removeprefix(prefix)
        if word not in known:
            raise ValueError(f"--store-option {name}=...: to read, one of {', '.join(sorted(known))}")
        try:
            found |= known[word](value)
        except ValueError:
            raise ValueError(f"--store-option {name}=...: it is no JSON") from None
    return found


def storage_options_of(urls: Iterable[str], options: Iterable[str]) -> dict[str, Any]:
    """The same, for the first of some paths that lies in a store."""
    urls = list(urls)
    return storage_options(next((url for url in urls if url.partition("://")[0] in SCHEMES), ""), options)
