"""What a run is told, from every source there is, laid over each other: ``settings.find_settings`` is the way in.

``dit_cache_backends.config`` makes one backend's options of one source; here are the sources, the dialects of other
projects, the sections of a file that are for the whole pipeline, and the JSON schema.
"""
