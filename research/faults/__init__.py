"""What a verdict can see: faults planted on purpose, and changes that are none, verified as any preset is."""
