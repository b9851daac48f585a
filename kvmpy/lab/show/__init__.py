"""What the experiments say: their words, tables and figures."""
