"""Requests in: from the socket through the limits to the app and back."""
