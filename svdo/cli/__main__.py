"""``python -m svdo.cli`` is ``svdo-run``."""

from .start import svdo_run

svdo_run()
