"""`python -m infu`: the command line."""

from infu.cli import main

main()
