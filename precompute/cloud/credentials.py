"""AWS credentials as its own tools find them: environment, profile, single sign-on, the machine's role."""

from collections.abc import Callable
from typing import Any

from precompute.errors import UsageError

MARGIN = 300  # seconds before their end in which they are asked for anew


def aws_credentials(place: str, profile: str | None) -> tuple[Callable[[], Any] | None, str | None]:
    """What gives the credentials of this moment, and the region set beside them; None each where there are none, or
    where botocore is missing: then the client looks at the environment by itself. Raises UsageError."""
    try:
        import botocore.session
        from botocore.exceptions import BotoCoreError
    except ImportError:
        if profile is not None:
            raise UsageError(
                "--store-option profile=...: needs botocore; run `pip install botocore`"
            ) from None
        return None, None
    try:
        session = botocore.session.Session(profile=profile)
        found = session.get_credentials()
        region = session.get_config_variable("region")
    except BotoCoreError as error:
        raise UsageError(
            f"{place}: AWS credentials cannot be had ({error}). Log in again, or set AWS_PROFILE"
        ) from error
    if found is None:
        return None, region

    def give() -> dict[str, Any]:
        now = found.get_frozen_credentials()
        until = getattr(found, "_expiry_time", None)
        return {
            "access_key_id": now.access_key,
            "secret_access_key": now.secret_key,
            "token": now.token,
            "expires_at": until,
        }

    return give, region
