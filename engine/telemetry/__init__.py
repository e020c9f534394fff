"""Run log, metrics and timeline: one schema and one set of formulae for both worlds."""
