"""The shared core: standard library only, no clock, no randomness."""
