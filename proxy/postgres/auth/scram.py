"""SCRAM-SHA-256 as a server (RFC 5802, RFC 7677), for one user whose password was made at start.

No channel binding: the clients are on this machine. A wrong proof and a malformed message are the same to a
client: its password failed.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from base64 import b64decode, b64encode
from binascii import Error as BadBase64

MECHANISM = b"SCRAM-SHA-256"
ITERATIONS = 4096  # the least that RFC 7677 allows; the password is random, so no more are needed


class ScramVerifier:
    """What a server keeps in place of a password (RFC 5802, section 3): `salt`, `stored_key` to check a client's proof,
    `server_key` to prove itself."""

    __slots__ = ("salt", "server_key", "stored_key")

    def __init__(self, password: str) -> None:
        self.salt = secrets.token_bytes(16)
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), self.salt, ITERATIONS)
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        self.stored_key = hashlib.sha256(client_key).digest()
        self.server_key = hmac.digest(salted, b"Server Key", "sha256")


class ScramExchange:
    """One login: `answer_first` and `answer_final` take the client's two messages and give the server's, or None if it
    is refused."""

    __slots__ = ("_binding", "_messages", "_nonce", "_verifier")

    def __init__(self, verifier: ScramVerifier) -> None:
        self._verifier = verifier
        self._nonce = b""
        self._binding = b""
        self._messages = b""

    def answer_first(self, sent: bytes) -> bytes | None:
        """`sent` is `n,[a=…],n=USER,r=NONCE`; the user's name is the startup packet's, as in PostgreSQL."""
        # "n": the client knows no channel binding; "y": it does, and thinks that we do not (RFC 5802, section 6).
        parts = sent.split(b",", 2)
        if len(parts) != 3 or parts[0] not in (b"n", b"y"):
            return None
        bare = parts[2]
        nonces = [field[2:] for field in bare.split(b",") if field.startswith(b"r=")]
        if len(nonces) != 1 or not nonces[0] or bare.startswith(b"m="):
            return None
        self._binding = b64encode(parts[0] + b"," + parts[1] + b",")
        self._nonce = nonces[0] + b64encode(secrets.token_bytes(18))
        reply = b"r=%b,s=%b,i=%d" % (self._nonce, b64encode(self._verifier.salt), ITERATIONS)
        self._messages = bare + b"," + reply
        return reply

    def answer_final(self, sent: bytes) -> bytes | None:
        """`sent` is `c=BINDING,r=NONCE,p=PROOF`."""
        # The proof is over all that was said, so that it is worth nothing for another exchange.
        without, found, proof = sent.rpartition(b",p=")
        if not found or without != b"c=" + self._binding + b",r=" + self._nonce:
            return None
        try:
            shown = b64decode(proof, validate=True)
        except (BadBase64, ValueError):
            return None
        signed = self._messages + b"," + without
        mask = hmac.digest(self._verifier.stored_key, signed, "sha256")
        if len(shown) != len(mask):
            return None
        # The proof is the client's key, hidden by a signature that only who has the stored key can make.
        client_key = bytes(left ^ right for left, right in zip(shown, mask, strict=True))
        if not hmac.compare_digest(hashlib.sha256(client_key).digest(), self._verifier.stored_key):
            return None
        return b"v=" + b64encode(hmac.digest(self._verifier.server_key, signed, "sha256"))
