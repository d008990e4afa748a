"""Runs that take long: finished parts that are kept, whole files, what a run printed and was measured with, and the report."""
