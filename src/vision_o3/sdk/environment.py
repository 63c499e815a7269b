"""Which gateway, and who asks: from the environment, and from what login kept."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

from vision_o3.errors import ConfigurationError, UnauthenticatedError
from vision_o3.sdk.client import VisionO3Client

DEFAULT_CACHE = "~/.vision-o3"
_YES = frozenset({"1", "true", "yes", "on"})
_NO = frozenset({"", "0", "false", "no", "off"})


def open_client(**given: Any) -> VisionO3Client:
    """Return a client from the environment, completed by what login kept; close it.

    Args:
        **given: The client's own arguments, by name; what is not ``None`` counts more
            than the environment. The environment's token or credentials are for the
            gateway that it names, and are not sent to another one.

    Raises:
        ConfigurationError: No gateway is named, or a variable makes no sense.
        UnauthenticatedError: The sign-in has ended.
        InputError: As ``VisionO3Client`` says.
    """
    options = {name: value for name, value in given.items() if value is not None}
    login = kept_login()
    named = os.environ.get("VISION_O3_URL") or login.get("url")
    options.setdefault("gateway_url", named)
    url = options["gateway_url"]
    if not url:
        raise ConfigurationError(
            "No gateway is named. Run 'vision-o3 login URL', or set VISION_O3_URL."
        )
    options.setdefault("cache_dir", cache_directory())
    options.setdefault("mirrors", mirrors())
    options.setdefault("offline", is_offline())
    if "api_token" not in options and "credentials" not in options:
        options.update(_who_asks(url, named, login, offline=options["offline"]))
    return VisionO3Client(**options)


def sign_in_credentials() -> Tuple[Optional[str], Optional[str]]:
    """Return client id and secret, each ``None`` if it is not set."""
    client_id = os.environ.get("VISION_O3_CLIENT_ID")
    return client_id or None, os.environ.get("VISION_O3_CLIENT_SECRET") or None


def cache_directory() -> str:
    """Return where the cache is; ``~`` is not yet expanded."""
    return os.environ.get("VISION_O3_CACHE") or DEFAULT_CACHE


def mirrors() -> Tuple[str, ...]:
    """Return the mirrors' URLs, which spaces or commas part."""
    return tuple(os.environ.get("VISION_O3_MIRRORS", "").replace(",", " ").split())


def is_offline() -> bool:
    """Return whether the network is forbidden.

    Raises:
        ConfigurationError: ``VISION_O3_OFFLINE`` says neither yes nor no.
    """
    said = os.environ.get("VISION_O3_OFFLINE", "").strip().lower()
    if said not in _YES | _NO:
        raise ConfigurationError(
            f"VISION_O3_OFFLINE is {said!r}. Set it to 1 or 0, or leave it out."
        )
    return said in _YES


def login_path() -> Path:
    """Return the file in which login keeps the token."""
    return Path(cache_directory()).expanduser() / "login.json"


def kept_login() -> Dict[str, Any]:
    """Return what login kept: ``url``, ``token``, ``ends_at``; empty if nothing."""
    try:
        kept = json.loads(login_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _who_asks(
    url: str, named: Optional[str], login: Dict[str, Any], *, offline: bool
) -> Dict[str, Any]:
    """Return the token or the credentials for a gateway, as the client takes them."""
    if named is None or _same(url, named):
        token = os.environ.get("VISION_O3_TOKEN")
        if token:
            return {"api_token": token}
        client_id, secret = sign_in_credentials()
        if client_id and secret:
            return {"credentials": (client_id, secret)}
        if client_id or secret:
            raise ConfigurationError(
                "Set both VISION_O3_CLIENT_ID and VISION_O3_CLIENT_SECRET, or neither."
            )
    if not login.get("token") or not _same(url, login.get("url")):
        return {}
    if login.get("ends_at", 0) < time.time() and not offline:
        raise UnauthenticatedError(
            f"The sign-in has ended. Run 'vision-o3 login {url}' again."
        )
    return {"api_token": login["token"]}


def _same(url: str, other: object) -> bool:
    return url.rstrip("/") == str(other).rstrip("/")
