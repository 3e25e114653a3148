"""How long the rest of a long command takes, printed once, in a line that job logs keep too."""

import logging
import time

logger = logging.getLogger(__name__)


def show_notes() -> None:
    """Print notes and warnings of this package to stderr, a line each."""
    logging.addLevelName(logging.INFO, "note")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("pipeline").setLevel(logging.INFO)


class Estimate:
    """Logs after the first units how long the others will take; progress bars show the rest."""

    def __init__(self, total: int, unit: str):
        """Start the clock; `total` are the units that are to be done from now on."""
        self._total, self._unit = total, unit
        self._done, self._is_said = 0, False
        self._started = time.monotonic()

    def advance(self, units: int = 1) -> None:
        """Take note that more units are done."""
        self._done += units
        if self._is_said or self._done >= self._total:
            return
        self._is_said = True
        rate = self._done / max(time.monotonic() - self._started, 1e-9)
        left_s = (self._total - self._done) / rate
        left = f"{left_s / 60:.0f} min" if left_s > 120 else f"{left_s:.0f} s"
        logger.info("%.3g %ss/s; about %s for the rest", rate, self._unit, left)
