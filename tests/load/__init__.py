"""The load test for servers of the Triton / KServe v2 protocol: `python -m tests.load --help`."""
