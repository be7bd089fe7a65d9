"""From files to batches: read and check rows, encode them, schedule forget and retain rows, and pad."""
