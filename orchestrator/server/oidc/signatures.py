"""Signed and sealed tokens; the only module that imports joserfc.

A token counts only if its signature is by a key that the provider publishes, with an algorithm of
:data:`ALGORITHMS`: all of them need the provider's private key. `none`, and the family in which a
public key could serve as a shared secret (HS256 …), are left out.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from joserfc import jwe, jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from orchestrator.server.oidc.errors import UnknownKeyError, WrongTokenError

ALGORITHMS = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA", "Ed25519"),
)
_KINDS: Mapping[str, Any] = {"RSA": RSAKey, "EC": ECKey, "OKP": OKPKey}
_SEAL = {"alg": "dir", "enc": "A256GCM"}
_MOST_CHARACTERS = 20_000


def claims_of(token: str, keys: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The claims of a token whose signature is right. Checks nothing else.

    Args:
        token: In the compact form.
        keys: The provider's published keys (JWK).

    Raises:
        UnknownKeyError: None of the keys can have signed it.
        WrongTokenError: The signature is wrong, or of a kind that is not accepted.
    """
    header = _header(token)
    if header.get("alg") not in ALGORITHMS:
        raise WrongTokenError(f"its signature is of the kind {str(header.get('alg'))[:20]!r}")
    if str(header.get("typ", "JWT")).lower().removeprefix("application/") not in {"jwt", "at+jwt"}:
        raise WrongTokenError("it is not a token of a person")
    key = _key(header, keys)
    try:
        return jwt.decode(token, key, algorithms=list(ALGORITHMS)).claims
    except (JoseError, ValueError, TypeError) as error:
        raise WrongTokenError("its signature is wrong") from error


def _header(token: str) -> dict[str, Any]:
    if len(token) > _MOST_CHARACTERS:
        raise WrongTokenError("it is too long")
    try:
        first = token.split(".", maxsplit=1)[0].encode()
        found = json.loads(base64.urlsafe_b64decode(first + b"=" * (-len(first) % 4)))
    except (ValueError, RecursionError) as error:
        raise WrongTokenError("it is not a signed token") from error
    if not isinstance(found, dict):
        raise WrongTokenError("it is not a signed token")
    return found


def is_usable(key: Mapping[str, Any]) -> bool:
    """True for a published key that is for signatures, and of a kind that is accepted."""
    return (
        key.get("kty") in _KINDS
        and key.get("use", "sig") == "sig"
        and key.get("alg", "RS256") in ALGORITHMS
    )


def _key(header: Mapping[str, Any], keys: Sequence[Mapping[str, Any]]) -> Any:
    """The published key that a header names; the only one, if it names none."""
    usable = [
        key
        for key in keys
        if is_usable(key)
        and key.get("alg", header["alg"]) == header["alg"]
        and ("kid" not in header or key.get("kid") == header["kid"])
    ]
    if len(usable) != 1:
        raise UnknownKeyError("no published key has signed it")
    try:
        return _KINDS[usable[0]["kty"]].import_key(dict(usable[0]))
    except (JoseError, ValueError, TypeError, KeyError) as error:
        raise UnknownKeyError("its key cannot be read") from error


def seal(text: str, secret: str) -> str:
    """Encrypt a text so that only who has the secret reads it: the database alone does not."""
    return jwe.encrypt_compact(_SEAL, text.encode(), _sealing_key(secret))


def unseal(sealed: str, secret: str) -> str | None:
    """The text that was sealed; None: with another secret."""
    try:
        opened = jwe.decrypt_compact(sealed, _sealing_key(secret)).plaintext
    except (JoseError, ValueError):
        return None
    return None if opened is None else opened.decode()


def _sealing_key(secret: str) -> OctKey:
    return OctKey.import_key(hashlib.sha256(f"seal {secret}".encode()).digest())
