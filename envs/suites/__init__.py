"""Environments of other projects, each suite in a Python environment of its own with the versions that it needs."""
