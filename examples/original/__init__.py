"""Why the savings that the original published differ from each other."""
