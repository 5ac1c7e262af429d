"""Compares two revisions: builds both in worktrees, times them in turns, and gives a verdict per cell."""
