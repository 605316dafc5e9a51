"""The command line: ``svdo-run``."""
