"""Numbers computed from records: comparable groups, their rows, and comparisons. No words, money or drawing."""
