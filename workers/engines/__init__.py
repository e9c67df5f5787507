"""Loaded models behind one interface (``base``): llama_cpp, torch, and the exact toy ``table``."""
