"""Pure numbers: estimates and their intervals. Knows no records, no torch."""
