"""Search methods and their settings by trials: each is a run folder of its own in a process of its own."""
