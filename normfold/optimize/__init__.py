"""The ordered pipeline: the only place that decides."""
