"""Parallel simulation: engines behind one protocol, worlds' random numbers, events, and the environment over them."""
