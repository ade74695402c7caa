"""Settings of single sign-on, a part of :class:`orchestrator.settings.Settings`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings

_ROLES = ("admin", "operator", "viewer")


class OidcSettings(BaseSettings):
    """The identity provider, and what its groups may do."""

    oidc_issuer: str = Field(
        default="",
        description="URL of an identity provider that speaks OpenID Connect, exactly as the "
        "provider writes it. Empty: no single sign-on; see sign-in.md.",
    )
    oidc_client_id: str = Field(default="", description="Id of babysit's page at the provider.")
    oidc_client_secret: SecretStr | None = Field(
        default=None, description="Secret of that client; not set for a public client."
    )
    oidc_client_secret_file: Path | None = Field(
        default=None, description="File with `oidc_client_secret`, instead of the variable."
    )
    oidc_device_client_id: str = Field(
        default="",
        description="Id of the public client that `babysit login` uses. Empty: `oidc_client_id`.",
    )
    oidc_scopes: str = Field(
        default="openid profile email",
        description="Scopes that are asked for. Many providers give refresh tokens only with "
        "`offline_access`, and groups only with `groups`.",
    )
    oidc_name_claim: str = Field(
        default="email",
        description="Claim that names a person in the journal. `email` counts only if the provider "
        "has verified it.",
    )
    oidc_groups_claim: str = Field(
        default="groups",
        description="Claim with the groups of a person; dots lead into objects: "
        "`realm_access.roles`.",
    )
    oidc_roles: str = Field(
        default="",
        description='JSON object from groups to roles: {"ml-admins": "admin", "ml": "operator"}. '
        "The highest role of a person's groups counts.",
    )
    oidc_default_role: str = Field(
        default="",
        description="Role of a person without a group of `oidc_roles`. Empty: such a person is "
        "refused.",
    )
    oidc_audiences: str = Field(
        default="",
        description="Further audiences of tokens that are accepted, with commas between them. The "
        "two clients' own always are.",
    )
    oidc_label: str = Field(default="Single sign-on", description="Words on the page's button.")
    oidc_recheck_minutes: float = Field(
        default=15.0,
        gt=0,
        description="How long after a sign-in, or the last check, a browser's groups are asked for "
        "anew.",
    )

    @field_validator("oidc_roles", mode="after")
    @classmethod
    def _role_of_each_group(cls, text: str) -> str:
        try:
            found = json.loads(text or "{}")
        except ValueError:
            found = None
        if not isinstance(found, dict) or not set(map(str, found.values())) <= set(_ROLES):
            raise ValueError('expected a JSON object from groups to roles: {"ml": "operator"}')
        return text

    @field_validator("oidc_default_role", mode="after")
    @classmethod
    def _known_role(cls, role: str) -> str:
        if role not in {"", *_ROLES}:
            raise ValueError(f"expected one of {', '.join(_ROLES)}, or nothing")
        return role

    @field_validator("oidc_scopes", mode="after")
    @classmethod
    def _with_openid(cls, scopes: str) -> str:
        if "openid" not in scopes.split():
            raise ValueError("expected `openid` among the scopes")
        return scopes

    @property
    def role_of_group(self) -> dict[str, Any]:
        """Group to role."""
        return dict(json.loads(self.oidc_roles or "{}"))

    @property
    def oidc_secret(self) -> str | None:
        """The client's secret.

        Raises:
            OSError: Its file cannot be read.
        """
        if self.oidc_client_secret_file is not None:
            return self.oidc_client_secret_file.expanduser().read_text().strip()
        return self.oidc_client_secret.get_secret_value() if self.oidc_client_secret else None

    @property
    def device_client(self) -> str:
        """The client of the command line."""
        return self.oidc_device_client_id or self.oidc_client_id

    @property
    def accepted_audiences(self) -> set[str]:
        """Audiences of tokens that are accepted."""
        more = [each.strip() for each in self.oidc_audiences.split(",")]
        return {each for each in (self.oidc_client_id, self.device_client, *more) if each}
