"""Where networks run: a device by its name, refused if this machine does not have it."""

import torch

from policy.errors import DeviceError


def open_device(name: str) -> torch.device:
    """Return a device by torch's name, or by `auto`: a GPU where there is one, else the CPU.

    Raises:
        DeviceError: there is no such device, or torch was built without it.
    """
    available = {
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
        "cpu": 1,
    }
    if name == "auto":
        return torch.device(next(kind for kind, count in available.items() if count))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(
            f"device: expected auto, cpu, cuda, cuda:N or mps, found {name!r}"
        ) from error
    if (device.index or 0) >= available.get(device.type, 0):
        found = ", ".join(f"{count} {kind}" for kind, count in available.items())
        raise DeviceError(f"device {name!r}: this machine and this torch have {found}")
    return device
