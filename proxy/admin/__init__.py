"""What operators reach by HTTP: health, metrics, status, commands, and the dashboard with its login."""
