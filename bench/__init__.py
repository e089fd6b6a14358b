"""A script for every claim of speed or cost; each prints a table, its yardstick run beside it."""
