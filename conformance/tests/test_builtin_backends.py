"""The built-in backends keep every promise, as a stranger's would have to."""

from __future__ import annotations

from dit_cache_conformance import CacheBackendSuite


class TestCacheDiT(CacheBackendSuite):
    backend = "cache_dit"


class TestDBPrune(CacheBackendSuite):
    backend = "dbprune"


class TestTeaCache(CacheBackendSuite):
    backend = "tea_cache"
