"""Refined FNA in a few launches on a GPU: plain PyTorch specifications, Triton programs, and the operators that call
them. Nothing here waits for the device, so all of it can be captured in a CUDA graph."""
