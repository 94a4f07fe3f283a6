"""The charts of a report: one module each, discovered by `charting`."""
