"""Values that tie a sign-in at the provider to the browser that began it.

State, nonce and the verifier of PKCE (RFC 7636) are derived from one random cookie, so nothing is
stored for strangers, and an answer of the provider works in that browser only.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Literal

CALLBACK = "/sign-in/oidc/callback"
BEGUN_SECONDS = 600.0
"""Time to sign in at the provider."""
_MOST_PATH = 500


def derived(purpose: Literal["state", "nonce", "verifier", "used"], cookie: str) -> str:
    """A value of 256 bits that only the browser with this cookie leads to."""
    digest = hmac.digest(cookie.encode(errors="surrogatepass"), purpose.encode(), "sha256")
    return _base64(digest)


def challenge(verifier: str) -> str:
    """The challenge S256 of a verifier (RFC 7636, 4.2)."""
    return _base64(hashlib.sha256(verifier.encode()).digest())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def local_path(asked: str) -> str:
    """The path of this site to which a sign-in leads on; `/` for all that could lead elsewhere."""
    plain = asked.isascii() and asked.isprintable() and not set(asked) & set("\\ ")
    is_path = asked.startswith("/") and not asked.startswith("//") and len(asked) <= _MOST_PATH
    return asked if plain and is_path else "/"
