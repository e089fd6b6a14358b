"""Every test has the fixtures of the testbed."""

pytest_plugins = ["testbed.fixtures"]
