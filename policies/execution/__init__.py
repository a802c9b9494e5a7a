"""Executing chunks: which action of which chunk each world runs now, and how the next chunk is asked for."""
