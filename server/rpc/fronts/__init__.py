"""Several front-end processes before one engine; `transport.py` is the door."""
