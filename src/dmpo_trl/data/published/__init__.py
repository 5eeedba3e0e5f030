"""Splits that papers published: each reader returns `PublishedSplits`."""
