"""The local cluster: virtual nodes on one machine."""
