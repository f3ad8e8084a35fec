"""``dit-cache bench``: what a cache costs and saves on this machine, beside other libraries in the same rounds."""
