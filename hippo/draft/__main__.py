"""The draft's side in a fresh interpreter, started by `hippo.draft.process`; not meant to be run by hand."""

import pickle
import sys
from multiprocessing.connection import Connection

from hippo.draft.messages import heartbeat

_, descriptor, source, dtype, device, trust, bits, attention, threads = sys.argv
connection = Connection(int(descriptor))
with heartbeat(lambda record: connection.send_bytes(pickle.dumps(record))):
    from hippo.draft.transport import ProcessTransport
    from hippo.draft.worker import work
transport = ProcessTransport(connection)
sys.exit(work(transport, source, dtype, device, int(threads), trust == "trust", int(bits), attention))
