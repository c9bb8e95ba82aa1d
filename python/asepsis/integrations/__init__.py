"""One file for each training tool that asepsis plugs into."""
