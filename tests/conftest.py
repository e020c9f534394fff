"""What must be set before anything imports torch or triton."""

import os

# With the default policy, a thread of torch that waits for another burns the core that the other one needs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Kernels run in Triton's interpreter, on CPU tensors; `python -m pagedkv.bench` is what checks them on a GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")
