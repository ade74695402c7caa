"""Tokens of node monitors: each lets one monitor report for its own node, and do nothing else."""

from __future__ import annotations

import hmac

from itsdangerous import BadSignature, URLSafeSerializer

from orchestrator.errors import PermissionDeniedError


class NodeTokens:
    """Signed tokens that name a node, and the secret that they are given out for.

    Args:
        key: The signing key of the control plane.
        secret: `BABYSIT_NODE_TOKEN`; empty: only tokens that the server has made count.
    """

    def __init__(self, key: str, secret: str = "") -> None:
        self._serializer = URLSafeSerializer(key, salt="babysit-node")
        self._secret = secret

    def make(self, node: str) -> str:
        """The token of one node."""
        return str(self._serializer.dumps(node))

    def give(self, secret: str, node: str) -> str:
        """The token of a node, for the secret of all nodes, or for the token itself.

        Raises:
            PermissionDeniedError: It is neither.
        """
        if self._secret and hmac.compare_digest(self._secret.encode(), secret.encode()):
            return self.make(node)
        self.check(secret, node)
        return secret

    def check(self, token: str, node: str) -> None:
        """Raise PermissionDeniedError unless the token is ours and names this node."""
        try:
            named = self._serializer.loads(token)
        except BadSignature as error:
            raise PermissionDeniedError(
                "the token is not a node monitor's: set BABYSIT_NODE_TOKEN to that of the server"
            ) from error
        if named != node:
            raise PermissionDeniedError(f"the token is that of another node, and not of {node}")
