"""What recipes are made of: one technique of another project per file."""
