"""Where arrays live: the mesh, and the one table of shardings."""
