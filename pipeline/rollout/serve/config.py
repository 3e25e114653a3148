"""The configuration of a policy server, and who may connect: this machine, or holders of its token.

A token comes from a file or from the environment, never from the command line, which every user of
a machine can read, and is not logged.
"""

import hmac
import ipaddress
import os
from pathlib import Path
from typing import Final

from pydantic import Field, SecretStr

from pipeline.errors import ConfigError
from pipeline.rollout.envs.base import FIRST_ROLLOUT_SEED
from pipeline.rollout.gate.checks import PolicyConfig

TOKEN_VARIABLE: Final = "VLA_SERVE_TOKEN"  # noqa: S105 - the variable's name
MIN_TOKEN_LENGTH: Final = 16  # characters; 64 bits if they are hexadecimal
SCHEME: Final = "Api-Key"  # openpi-client 0.1.2, websocket_client_policy.py


class ServeConfig(PolicyConfig):
    """What to serve, where, and to whom."""

    host: str = "127.0.0.1"
    """Address to listen on; one that other machines reach needs a token."""
    port: int = Field(default=8000, ge=0, le=65_535)
    """TCP port; 0 takes a free one."""
    token: SecretStr | None = None
    """What clients must send as `Authorization: Api-Key TOKEN`; None requires nothing."""
    max_message_mib: int = Field(default=16, ge=1, le=1024)
    """Largest message in MiB; three views of 640x480 at two observation steps take 6."""
    first_seed: int = Field(default=FIRST_ROLLOUT_SEED, ge=0)
    """Decides the noise of each connection's first episode; each further episode takes the next."""


def read_token(path: Path | None) -> SecretStr | None:
    """Read the token from a file, or else from the environment; None where there is none.

    It is 16 or more printable ASCII characters without spaces (ConfigError, or OSError).
    """
    where, content = TOKEN_VARIABLE, os.environb.get(TOKEN_VARIABLE.encode())
    if path is not None:
        where, content = str(path), path.read_bytes()
    if content is None:
        return None
    token = content.strip()
    if len(token) < MIN_TOKEN_LENGTH or not all(33 <= letter <= 126 for letter in token):
        raise ConfigError(
            f"{where}: expected a token of {MIN_TOKEN_LENGTH} or more printable characters without "
            "spaces, found another; make one with `openssl rand -hex 16`"
        )
    return SecretStr(token.decode("ascii"))


def check_exposure(host: str, token: SecretStr | None) -> None:
    """Refuse to listen beyond this machine without a token (ConfigError)."""
    try:
        is_local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = host == "localhost"
    if token is None and not is_local:
        raise ConfigError(
            f"--host {host}: expected a token for an address that other machines reach, found "
            f"none; give --token-file or {TOKEN_VARIABLE}, or listen on 127.0.0.1"
        )


def is_authorized(headers: list[str], token: SecretStr | None) -> bool:
    """Return whether a request with these `Authorization` headers has the token, if any."""
    if token is None:
        return True
    expected = f"{SCHEME} {token.get_secret_value()}".encode()
    sent = [header.encode(errors="surrogateescape") for header in headers]
    return len(sent) == 1 and hmac.compare_digest(sent[0], expected)
