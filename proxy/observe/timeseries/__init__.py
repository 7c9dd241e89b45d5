"""What the metrics said before: snapshots of the counters, and statistics over a window of them."""
