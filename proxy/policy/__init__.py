"""The policy language: its schema, parsing, reading, validation and rendering, and watching the file for changes."""
