"""Loading a checkpoint, planning sizes and running an edit: the single call path that everything above uses."""
