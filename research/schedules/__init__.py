"""Which schedule of computed steps comes nearest to all steps at equal work: a study on `tiny`."""
