"""The documents as a site, from docs/ and from what the code says of itself: `make site` builds it with mkdocs."""
