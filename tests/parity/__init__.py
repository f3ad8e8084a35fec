"""Parity with the cache-dit library, case by case."""
