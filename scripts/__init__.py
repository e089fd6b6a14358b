"""What `make` calls. These run before anything is installed: standard library only."""
