"""One module per optimization; `optimizations.registry` discovers them."""
