"""The status page and its JSON: `autoheal run --web`."""
