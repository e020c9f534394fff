"""Measures the kernels on a GPU and compares them with what they should reach: `python -m pagedkv.bench`."""
