"""From files to batches: read and validate, mark where the answer begins, pair forget with retain, pad."""
