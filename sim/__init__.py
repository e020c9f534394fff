"""The simulated world: a SimPy clock, a backend made of a cost model, hardware figures and workloads."""
