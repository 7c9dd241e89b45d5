"""Parsing: from text to nodes that remember their lines (YAML, JSON), and ${NAME} in their values."""
