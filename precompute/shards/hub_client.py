"""The Hub's client with an end to its patience: of itself it waits for an answer without one."""

import functools
from typing import Any

import huggingface_hub
from huggingface_hub.utils._http import default_client_factory

SILENCE = 120.0  # seconds without a byte, after which a try has failed; the client makes five more


@functools.cache
def bound_silence() -> None:
    """Bound the silence of all requests of this process that name no bound of their own."""
    huggingface_hub.set_client_factory(_client)


def _client() -> Any:
    client = default_client_factory()
    client.event_hooks = {**client.event_hooks, "request": [*client.event_hooks["request"], _bounded]}
    return client


def _bounded(request: Any) -> None:
    # A listing's "no bound" is given with the request, and would win over a default of the client.
    given = request.extensions.get("timeout") or {}
    bounds = {what: given.get(what) or SILENCE for what in ("connect", "read", "write", "pool")}
    request.extensions = {**request.extensions, "timeout": bounds}
