"""What people touch: the command line, the HTTP gateway, the Ray coordinator, benchmarks."""

__version__ = "0.1.0"
