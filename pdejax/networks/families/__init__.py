"""Families of checkpoints, one file each: a map of its configuration and a map of its weights."""
