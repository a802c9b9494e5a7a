"""Measuring what a robot does not tell: delays of its commands and cameras, and where a camera is mounted."""
