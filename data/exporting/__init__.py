"""Stores written in the formats of others. One file a format."""
