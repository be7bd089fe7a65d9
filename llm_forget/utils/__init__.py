"""Helpers that do not depend on models: dataclasses from YAML, files, digests, plugins, optional extras."""
