"""The verification-shaped CPU engine: checking eight tokens costs little more than one, bit for bit the same.

``kernel.cpp`` is the forward (int8 x int8, AVX512-VNNI), ``library`` its binding, ``source`` reads llama-family
models, ``weights`` converts and caches them, ``engine`` is the Engine.
"""
