"""Errors of everything that touches disks, processes and simulators."""

from collections.abc import Sequence

from policy.errors import VlaError


class ManifestError(VlaError, ValueError):
    """A dataset manifest is wrong: unknown key, missing file, impossible value."""


class DatasetError(VlaError, ValueError):
    """A dataset does not hold what its manifest states, or holds values that cannot be used."""


class FrameReadError(VlaError, OSError):
    """A frame is absent or does not decode; never replaced by fewer or blank frames."""


class StoreError(VlaError, RuntimeError):
    """A feature store cannot be used: absent, of another format, or damaged."""


class IncompleteStoreError(StoreError):
    """A feature store whose embedding has not finished."""


class WorkerLostError(VlaError, RuntimeError):
    """Processes that do part of the work have ended: killed, or out of memory."""


class ObjectStorageError(VlaError):
    """Object storage refuses, or does not answer (the network's, its settings' or its fault).

    No `OSError` and no `RuntimeError`: code that takes those for damaged data must not take an
    outage for it, and encode again what is there.
    """


class CutAnswerError(ObjectStorageError):
    """An answer of object storage broke off; the same request may be sent again."""


class EncoderMismatchError(VlaError, ValueError):
    """Features of one encoder would meet another encoder."""


class RunError(VlaError, RuntimeError):
    """A run directory is absent, half-written or does not fit the request."""


class TrackerError(VlaError, RuntimeError):
    """An experiment tracker cannot be opened: no login, no network, or a defect of it."""


class RankLostError(VlaError, RuntimeError):
    """Another process of the same training has ended or does not answer."""


class EnvError(VlaError, RuntimeError):
    """A simulator cannot be built, or does not fit the policy."""


class EpisodeError(EnvError):
    """A simulator failed in an episode: it raised, or showed numbers that are not finite."""


class RenderingError(EnvError):
    """No way to render without a screen: neither EGL nor OSMesa works on this machine."""


class ConfigError(VlaError, ValueError):
    """A setting is unknown or out of range."""


class RequestError(VlaError, ValueError):
    """A client's message cannot be processed: bytes, keys or arrays (client's fault)."""


class FailedUnitsError(StoreError):
    """Frames of a dataset do not read: their units hold no rows, all others are committed."""

    def __init__(self, message: str, reasons: Sequence[str]):
        """Give the message in one line, and a line per unit."""
        super().__init__(message)
        self.reasons = tuple(reasons)


class CameraMismatchError(VlaError, ValueError):
    """Cameras do not show what they showed in training (their mounting's or the client's fault)."""
