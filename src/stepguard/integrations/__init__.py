"""Guards for trainings that are not written around `watch`, one file for each kind."""
