"""Two revisions beside each other: built in worktrees, timed in turns, and a verdict a cell."""
