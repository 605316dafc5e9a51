"""``python -m svdo.cli`` is ``svdo-run``."""

from .run import main

main()
