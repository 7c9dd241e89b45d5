"""Where alerts are sent: one file a channel, each with a function that writes its message."""
