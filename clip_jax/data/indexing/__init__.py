"""Indexes of shards: where each record lies, so that any can be read first."""
