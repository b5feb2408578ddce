"""The commands of `durus`, one module each, and the manner that they keep, in `manner`."""

# Like everything else of ours, this shall refuse to be mixed up with Durus 4.x.
from durus.error import DurusError as DurusError
