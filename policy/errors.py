"""The root of the project's error tree.

Every error that a user can cause derives from `VlaError` and from the fitting builtin; the command
line turns it into one line and exit code 2. Anything else is a defect of ours and shows its
traceback.
"""


class VlaError(Exception):
    """The user's input cannot be used; the message has the location and what to do."""


def install_command(extra: str) -> str:
    """Return how an optional extra is installed, for the end of an error message."""
    return f"run `pip install -c constraints.txt '.[{extra}]'` in a clone of frozen-vla"


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
