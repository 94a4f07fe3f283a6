"""What measured times cost: prices with a date, billing models, savings and when they pay. Knows nothing of torch."""
