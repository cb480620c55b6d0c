"""Named runs: config in, a run folder with tables and figures out."""
