"""What the recipes in data/ share: documents in, token shards out."""
