"""Editing demonstrations: lazily, one operation after another, into a new store or a view; never in place."""
