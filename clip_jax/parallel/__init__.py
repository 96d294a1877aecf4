"""The device mesh, the one table of shardings, and the other processes."""
