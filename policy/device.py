"""Where tensors live: a device by its name, refused if this machine does not have it."""

import torch

from policy.errors import DeviceError


def open_device(name: str) -> torch.device:
    """Return the device called `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises:
        DeviceError: there is no such device, or torch was built without it.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"device {name!r}: want cpu, cuda, cuda:N or mps") from error
    available = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if (device.index or 0) >= available.get(device.type, 0):
        found = ", ".join(f"{count} {kind}" for kind, count in available.items())
        raise DeviceError(f"device {name!r}: this machine and this torch have {found}")
    return device
