"""Helpers that know nothing about models: YAML into dataclasses, files, digests, plugins, optional extras."""
