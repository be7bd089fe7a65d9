"""Job files for launchers and schedulers of others."""
