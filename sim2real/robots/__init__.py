"""Robots as data: topics, joints, limits, cameras."""
