"""Small helpers without any knowledge of models: YAML into dataclasses, files, digests, plugins, optional extras."""
