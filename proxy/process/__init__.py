"""This process towards the operating system: its listen sockets, its service manager, its memory."""
