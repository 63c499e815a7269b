"""Queryable metadata in SQLite or PostgreSQL: tables, queries, migrations.

Synchronous: call it from worker threads. Knows nothing of objects or HTTP.
"""
