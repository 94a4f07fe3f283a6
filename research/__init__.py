"""Studies, and what did not pay."""
