"""How the bundled models were trained; nothing here is needed to run the benchmark."""
