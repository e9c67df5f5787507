"""Bodies as clients send them, read forgivingly: what is asked, in one shape."""
