"""What an operator sees and does: status, health, commands, reloads, and what alerts are judged by."""
