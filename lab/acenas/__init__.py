"""AceNAS."""
