"""One file per project; each public `Preset`, or tuple of them, in it is a peer, found by a scan of this package."""
