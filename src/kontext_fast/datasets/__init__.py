"""Items: (input image, instruction) pairs, and the synthetic world they come from."""
