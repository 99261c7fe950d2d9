"""DQSS seen."""
