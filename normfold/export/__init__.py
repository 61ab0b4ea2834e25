"""Artefacts: files that other tools load, written atomically and checked."""
