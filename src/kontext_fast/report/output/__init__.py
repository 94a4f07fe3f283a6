"""What a report is written to: pages, documents, tables and the terminal."""
