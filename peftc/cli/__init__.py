"""The command line: parses, calls, prints. Decides nothing that the Python functions do not."""

from peftc.cli.running import main

__all__ = ["main"]
