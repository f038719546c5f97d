"""Images: where they come from, the store that keeps them, and the root that a box mounts."""
