"""Models in files: the format, the published one, the models that ship, the hub."""
