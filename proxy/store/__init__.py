"""What several instances share: limits, caps, blocks, cached answers, and who is there."""
