"""The root of the project's error tree.

Every error that a user can cause derives from `VlaError` and from the fitting builtin; the command
line turns it into one line and exit code 2. Anything else is a defect of ours and shows its
traceback.
"""

from pydantic import ValidationError


class VlaError(Exception):
    """The user's input cannot be used; the message has the location and what to do."""


def install_command(extra: str) -> str:
    """Return how an optional extra is installed, for the end of an error message."""
    return f"run `pip install -c constraints.txt '.[{extra}]'` in a clone of frozen-vla"


def one_line(message: object) -> str:
    """Return a library's message on one line of at most 300 characters."""
    return " ".join(str(message).split())[:300]


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error; the name of its class if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def invalid_field(error: ValidationError) -> str:
    """Return the first invalid field of a model, as `group.field: problem`."""
    first = error.errors()[0]
    return ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))


class ImageFormatError(VlaError, ValueError):
    """Images are not what the encoder takes (data's fault): dtype, channel count or size."""


class EncoderLoadError(VlaError, RuntimeError):
    """An encoder cannot be loaded (hub, folder, weights, preprocessing, feature)."""


class FeatureRangeError(VlaError, ArithmeticError):
    """A feature is not finite or does not fit float16 (the weights' or the dtype's fault)."""


class DeviceError(VlaError, ValueError):
    """This machine does not have the requested device."""


class AgentMismatchError(VlaError, ValueError):
    """Data or weights do not fit the agent's shapes (configuration's fault)."""


class MissingExtraError(VlaError, ImportError):
    """An optional library is not installed (installation's fault); see `install_command`."""


class NonFiniteLossError(VlaError, FloatingPointError):
    """Training diverged: the loss is NaN or infinite (configuration's or data's fault)."""
