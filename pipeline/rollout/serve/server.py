"""Serve a trained policy to robots, over openpi's websocket protocol: its public client works.

Knows what the `serve` extra is for; `serve_sockets.py` has the connections, `serve_session.py` the
decisions, `serve_request.py` the keys of an observation and `serve_wire.py` the bytes.
"""

from collections.abc import Callable

from pipeline.rollout.serve.config import ServeConfig, check_exposure
from policy.errors import MissingExtraError, install_command


def serve(config: ServeConfig, announce: Callable[[str], None]) -> None:
    """Serve a run until Ctrl-C or SIGTERM.

    Args:
        config: what to serve.
        announce: takes one line when the server listens.

    Raises:
        ConfigError: the address cannot be used, or would be open to others without a token.
        MissingExtraError: the libraries of the protocol are not installed.
        RunError, EncoderLoadError, EncoderMismatchError, AgentMismatchError: the policy cannot be
            loaded faithfully.
    """
    check_exposure(config.host, config.token)
    try:
        from pipeline.rollout.serve.sockets import serve_until_signal  # noqa: PLC0415 - optional
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{config.run}: expected the libraries of openpi's protocol, found no module "
            f"{error.name}; {install_command('serve')}"
        ) from error
    serve_until_signal(config, announce)
