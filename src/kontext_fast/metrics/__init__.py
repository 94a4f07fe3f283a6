"""What can be said of an output: one metric per file, found by scanning this package."""
