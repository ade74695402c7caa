"""An identity provider that follows the contract, with real keys: OpenID Connect Core, RFC 6749,
7636 (PKCE), 8628 (device flow) and refresh tokens that work once.

Its people, groups and keys change as a test says; :attr:`Provider.spoil` makes it misbehave.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

from jobs.clock import SystemClock

CLIENT, SECRET, DEVICE = "babysit-page", "page secret:/%", "babysit-cli"
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"


class Provider:
    """Serves on a port of this machine until left."""

    def __init__(self) -> None:
        self.people: dict[str, dict[str, Any]] = {
            "mia": {
                "email": "mia@example.org",
                "email_verified": True,
                "groups": ["ml-oncall", "everyone"],
            }
        }
        self.who = "mia"
        """The person at the provider's page."""
        self.seconds = 300
        """How long an ID token is good."""
        self.spoil: Callable[[dict[str, Any]], dict[str, Any]] = lambda claims: claims
        """Changes the claims of the next ID tokens."""
        self.forge: Callable[[dict[str, Any]], str] | None = None
        """Makes the next ID tokens itself."""
        self.away = False
        self.asked: list[str] = []
        """Paths of all requests."""
        self.grants_refresh = True
        self.approved: bool | None = True
        """Of the device flow: approved, denied (False), or not decided (None)."""
        self.slow_downs = 0
        self._codes: dict[str, dict[str, Any]] = {}
        self._refresh: dict[str, tuple[str, str]] = {}
        self._spent: set[str] = set()
        self._devices: dict[str, str] = {}
        self.turn_keys()
        self._server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (_Handler,), {"provider": self})
        )
        self.issuer = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def turn_keys(self) -> None:
        """Sign with a new key; the old one is no longer published."""
        self.key = RSAKey.generate_key(2048, {"kid": secrets.token_hex(4), "use": "sig"})

    def id_token(self, client: str, nonce: str | None = None, **more: Any) -> str:
        """A signed ID token of the person, as the provider gives it now."""
        now = int(SystemClock().now().timestamp())
        claims = {
            "iss": self.issuer,
            "sub": f"id-of-{self.who}",
            "aud": client,
            "iat": now,
            "exp": now + self.seconds,
            **({"nonce": nonce} if nonce else {}),
            **self.people[self.who],
            **more,
        }
        claims = self.spoil(claims)
        return self.forge(claims) if self.forge else self.sign(claims)

    def sign(self, claims: dict[str, Any], **header: Any) -> str:
        head = {"alg": "RS256", "kid": self.key.kid, **header}
        return jwt.encode(head, claims, self.key)

    # endpoints

    def describe(self) -> dict[str, Any]:
        base = self.issuer
        return {
            "issuer": base,
            "authorization_endpoint": f"{base}/authorize",
            "token_endpoint": f"{base}/token",
            "jwks_uri": f"{base}/keys",
            "device_authorization_endpoint": f"{base}/device",
            "revocation_endpoint": f"{base}/revoke",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
        }

    def keys(self) -> dict[str, Any]:
        return {"keys": [self.key.as_dict(private=False)]}

    def authorize(self, asked: dict[str, str]) -> str:
        """Where the browser is sent back to, as the person signs in."""
        assert asked["response_type"] == "code"
        assert asked["client_id"] == CLIENT
        assert asked["code_challenge_method"] == "S256"
        assert "openid" in asked["scope"].split()
        code = secrets.token_urlsafe(8)
        self._codes[code] = {**asked, "who": self.who}
        answer = {"code": code, "state": asked["state"], "iss": self.issuer}
        return f"{asked['redirect_uri']}?{urlencode(answer)}"

    def token(self, form: dict[str, str], basic: str | None) -> tuple[int, dict[str, Any]]:
        client = form.get("client_id", "")
        if basic is not None:
            client, _, secret = base64.b64decode(basic).decode().partition(":")
            client = unquote(client)
            if (client, unquote(secret)) != (CLIENT, SECRET):
                return 401, {"error": "invalid_client"}
        elif client != DEVICE:
            return 401, {"error": "invalid_client"}
        grant = form["grant_type"]
        if grant == "authorization_code":
            return self._of_code(form, client)
        if grant == "refresh_token":
            return self._of_refresh(form["refresh_token"], client)
        if grant == DEVICE_GRANT:
            return self._of_device(form["device_code"], client)
        return 400, {"error": "unsupported_grant_type"}

    def _of_code(self, form: dict[str, str], client: str) -> tuple[int, dict[str, Any]]:
        begun = self._codes.pop(form["code"], None)
        if begun is None or begun["redirect_uri"] != form["redirect_uri"]:
            return 400, {"error": "invalid_grant", "error_description": "unknown code"}
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        if base64.urlsafe_b64encode(digest).decode().rstrip("=") != begun["code_challenge"]:
            return 400, {"error": "invalid_grant", "error_description": "wrong verifier"}
        self.who = begun["who"]
        return 200, self._tokens(client, begun.get("nonce"))

    def _of_refresh(self, token: str, client: str) -> tuple[int, dict[str, Any]]:
        who, owner = self._refresh.pop(token, ("", ""))
        if token in self._spent:  # used twice: somebody has stolen it
            self._refresh.clear()
        self._spent.add(token)
        if who not in self.people or owner != client:
            return 400, {"error": "invalid_grant"}
        self.who = who
        return 200, self._tokens(client, None)

    def device(self, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        if form.get("client_id") != DEVICE:
            return 401, {"error": "invalid_client"}
        code = secrets.token_urlsafe(8)
        self._devices[code] = "WDJB-MJHT"
        return 200, {
            "device_code": code,
            "user_code": "WDJB-MJHT",
            "verification_uri": f"{self.issuer}/enter",
            "verification_uri_complete": f"{self.issuer}/enter?user_code=WDJB-MJHT",
            "expires_in": 600,
            "interval": 1,
        }

    def _of_device(self, code: str, client: str) -> tuple[int, dict[str, Any]]:
        if code not in self._devices:
            return 400, {"error": "expired_token"}
        if self.slow_downs:
            self.slow_downs -= 1
            return 400, {"error": "slow_down"}
        if self.approved is None:
            return 400, {"error": "authorization_pending"}
        del self._devices[code]
        if not self.approved:
            return 400, {"error": "access_denied"}
        return 200, self._tokens(client, None)

    def _tokens(self, client: str, nonce: str | None) -> dict[str, Any]:
        found = {
            "access_token": "opaque",
            "token_type": "Bearer",
            "expires_in": self.seconds,
            "id_token": self.id_token(client, nonce),
        }
        if self.grants_refresh:
            found["refresh_token"] = secrets.token_urlsafe(16)
            self._refresh[found["refresh_token"]] = self.who, client
        return found

    def revoke(self, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        self._refresh.pop(form["token"], None)
        return 200, {}


class _Handler(BaseHTTPRequestHandler):
    provider: Provider

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.provider.asked.append(parts.path)
        pages = {
            "/.well-known/openid-configuration": self.provider.describe,
            "/keys": self.provider.keys,
        }
        if parts.path == "/authorize":
            self.send_response(303)
            self.send_header("Location", self.provider.authorize(_form(parts.query)))
            self.end_headers()
        elif parts.path in pages and not self.provider.away:
            self._answer(200, pages[parts.path]())
        else:
            self._answer(503 if self.provider.away else 404, {})

    def do_POST(self) -> None:
        provider = self.provider
        provider.asked.append(self.path)
        form = _form(self.rfile.read(int(self.headers["Content-Length"])).decode())
        kind, _, basic = self.headers.get("Authorization", "").partition(" ")
        if provider.away:
            self._answer(503, {})
        elif self.path == "/token":
            self._answer(*provider.token(form, basic if kind == "Basic" else None))
        else:
            self._answer(*{"/device": provider.device, "/revoke": provider.revoke}[self.path](form))

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def _form(text: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(text, keep_blank_values=True).items()}
