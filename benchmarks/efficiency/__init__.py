"""Efficiency: time to first token, the recipes one by one, processor throughput, and where the time goes."""
