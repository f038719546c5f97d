"""Real images and a real registry."""
