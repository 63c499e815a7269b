"""Bytes by key. Knows nothing of HTTP, tables or models."""
