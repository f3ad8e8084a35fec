"""For ``pytest --pyargs dit_cache_conformance``: the suite, without the tests of its own tiny models."""

collect_ignore = ["tiny"]
