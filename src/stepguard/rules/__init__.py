"""From YAML to conditions to alerts, without torch."""
