"""The contract between compressor and server: what goes on the wire and on disk. Imports nothing of ours."""
