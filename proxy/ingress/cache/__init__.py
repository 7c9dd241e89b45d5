"""Answers of the app that are kept and given again (`routes[].cache`): a shared cache by RFC 9111."""
