"""The package without what the probe never imports of it: instruments and collectors."""
