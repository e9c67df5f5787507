"""Benchmarks anyone can run; each prints a table, writes JSON on request, and names the machine."""
