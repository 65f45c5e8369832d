"""Closed-loop evaluation in process, statistics and reports."""
