"""From alerts to one decision a step, and what carries it out: remedies, attempts."""
