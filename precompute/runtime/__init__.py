"""A run at work: leases of units, the pipeline, the disk it may take, the progress that it shows."""
