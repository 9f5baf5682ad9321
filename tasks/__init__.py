"""What is measured: one file a task, protocol and metric."""
