"""The verification-shaped CPU engine: checking eight tokens costs little more than one, bit for bit the same.

``kernel/`` is the forward in C++, on each kind of CPU (``library``: its binding); ``architecture`` and ``rotation`` say
what a family computes, ``source`` finds its tensors on disk, ``weights`` repacks them, ``engine`` is the Engine.
"""
