"""The process to fork from imports this last: its forks look for no garbage in what it loaded."""

import gc

gc.freeze()
