"""The Triton programs: the only modules that import triton, and only when a kernel is called for."""
