"""Makes data sets of data sets, in stages of independent tasks."""
