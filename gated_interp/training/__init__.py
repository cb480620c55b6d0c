"""Training: losses, schedules, the hooked loop, and many runs stacked."""
