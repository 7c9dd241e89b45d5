"""What the files of an app say of it; nothing of the app is run."""
