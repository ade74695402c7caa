"""Metrics for Prometheus: what there is (`catalogue`), its values, and the text of a scrape."""
