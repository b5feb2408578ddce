"""Refuse to run mixed up with Durus 4.x, which owns `durus/__init__.py`.

Durus 5 is a namespace package shared by several distributions, and nobody owns its `__init__`.
Installed over Durus 4.x it would be half of one and half of the other, and uninstalling 4.x
afterwards would delete files of ours.  The lowest modules import this one, so all do.
"""

import durus

if getattr(durus, "__file__", None):
    raise ImportError(
        f"Durus 4.x is installed in the same environment ({durus.__file__}), and Durus 5 cannot "
        "share it.  Remedy: 'python -m pip uninstall -y durus', then reinstall the packages of "
        "Durus 5 with 'python -m pip install --force-reinstall --no-deps' and the names among "
        "durus-persistent, durus-storage, durus-net and durus-tools that 'pip list' shows."
    )
