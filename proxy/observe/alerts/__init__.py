"""What an owner is told, and when: rules judged, remembered, put into words, sent."""
