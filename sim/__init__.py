"""The simulated world: a SimPy driver, a backend made of a cost model, hardware figures and workloads."""
