"""What `doctor` tries, a file for each neighbourhood. Nothing is changed, and nothing costs money."""
