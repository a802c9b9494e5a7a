"""Curricula: how far worlds differ while a policy is trained, and what widens it."""
