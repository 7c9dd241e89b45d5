"""The history of the metrics: snapshots of the counters, and statistics over a window between two of them."""
