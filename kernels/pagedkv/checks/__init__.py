"""The correctness matrix of the kernels: cases that run on any device, the interpreter's included."""
