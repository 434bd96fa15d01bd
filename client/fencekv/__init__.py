"""FenceKV: the SDK, the command line, and the formats that operator and shards share."""
