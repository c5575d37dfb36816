"""Hand-written code that the lessons rest on: files, the hub, the command line, this machine."""
