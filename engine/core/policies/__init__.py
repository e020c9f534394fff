"""One file an axis. What a policy is asked stands in `base`."""
