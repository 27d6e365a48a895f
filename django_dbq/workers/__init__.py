"""Worker processes: the loop, where tasks run, and what keeps them in order."""
