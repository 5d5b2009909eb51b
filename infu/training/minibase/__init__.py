"""The mini base, FLUX.1-dev's layout at a thousandth of its size, trained from nothing on the mini world.

`python -m infu.training.minibase --help`; the commands in their order are in docs/training.md.
"""
