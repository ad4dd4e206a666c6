"""Numbers over steps, without torch: history, windows, detectors, the run file."""
