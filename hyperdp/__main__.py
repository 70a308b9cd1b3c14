"""`python -m hyperdp` is the command `hyperdp`."""

from hyperdp.cli import main

main()
