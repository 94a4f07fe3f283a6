"""One file per project; each public `Peer`, or tuple of them, in it is found by a scan of this package."""
