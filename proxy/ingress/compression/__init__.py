"""Content codings of answers that the app left plain (`routes[].compress`)."""
