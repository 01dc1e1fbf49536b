"""The IKEv2 core: octets, paths and time in; outputs out. No I/O, no clock, no randomness.

``endpoint.Endpoint`` is the whole surface::

    endpoint.receive(datagram, now)          # octets in
    endpoint.handle_timeout(now)             # time in
    endpoint.answer(ask, value, now)         # a fact the shell fetched
    endpoint.initiate(policy, path, now)     # our own wish; likewise close, rekey, path_up
    endpoint.outputs()                       # everything to do, in order; empties the queue
    endpoint.next_timeout()                  # when handle_timeout is due, or None

One mutation, then drain the outputs, then arm the timer again. ``now`` is monotonic seconds
everywhere in this package; wall time (for certificates) and randomness are functions given to
the Endpoint.
"""
