"""The server's side of 443: tells tunnel from web by the first octets, and hands each on unread."""
