"""Lets ``python -m lg`` stand for the ``lg`` command."""

from lg.cli import entry

entry()
