"""Demonstrations of other formats, read episode by episode into a store. One file a format."""
