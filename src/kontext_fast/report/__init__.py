"""Charts, pages and documents computed from stored records and images. Knows nothing of torch."""
