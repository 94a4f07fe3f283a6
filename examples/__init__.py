"""Examples of use, and the figures that the original of this project published."""
