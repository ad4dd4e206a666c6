"""From a torch model and optimizer to a Frame: hooks that only measure, one transfer a sampled step."""
