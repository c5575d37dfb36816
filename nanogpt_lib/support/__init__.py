"""What carries the lessons, written by hand: files, the hub, the command line, this machine."""
