"""The app: started, watched, replaced, stopped."""
