"""vLLM-Omni, the real one: what opens its selector of cache backends, and what its runner then drives.

Nothing here imports vLLM-Omni until it asks for it: ``plugin.register`` is its entry point.
"""
