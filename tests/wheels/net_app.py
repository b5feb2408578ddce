"""A program that needs durus-net: a server in a thread, and clients of it."""

import threading

from durus.client_storage import ClientStorage
from durus.connection import Connection
from durus.error import ConflictError
from durus.persistent import Persistent
from durus.persistent_dict import PersistentDict
from durus.storage import MemoryStorage
from durus.storage_server import StorageServer


class Account(Persistent):
    def __init__(self, balance: int) -> None:
        self.balance = balance


def main() -> None:
    server = StorageServer(MemoryStorage(), port=0)
    address = server.listen()
    thread = threading.Thread(target=server.serve)
    thread.start()
    with ClientStorage(address=address) as mine, ClientStorage(address=address) as yours:
        me = Connection(mine, root_class=PersistentDict[str, Account])
        you = Connection(yours, root_class=PersistentDict[str, Account])
        me.root["ann"] = Account(10)
        me.commit()
        you.abort()
        you.root["ann"].balance += 1
        me.root["ann"].balance += 2
        you.commit()
        try:
            me.commit()
        except ConflictError:
            me.abort()
        assert me.root["ann"].balance == 11
    server.stop()
    thread.join()
    print("net_app works")


if __name__ == "__main__":
    main()
