"""Where requests come from: recorded traces and synthetic generators, all of them a `base.Workload`."""
