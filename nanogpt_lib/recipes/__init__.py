"""Code shared by the recipes in data/: documents in, token shards out."""
