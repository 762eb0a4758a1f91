"""``python -m hasten`` is ``hasten``."""

from hasten.cli import main

main()
