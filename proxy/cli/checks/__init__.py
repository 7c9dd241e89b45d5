"""What `doctor` tries, by subject. No check changes anything or costs money."""
