"""The commands of `durus`, one module each, and the manner that they keep, in `manner`."""
