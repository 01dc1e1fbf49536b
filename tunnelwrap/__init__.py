"""IKEv2/IPsec endpoint that travels over UDP, TCP (RFC 9329), TLS or WebSocket on 443.

The layers, top to bottom; each may import what stands below it:

    cli        commands: parse, call, print
    daemon     composition roots: driver (feeds the core), server, client, control socket, demo
    profile    configurations of other programs, written from ours
    config     TOML into the settings of the layers below
    demux      443: tell tunnel from web by the first octets; the web site, and the gate in it
    hostnet    what is changed on the host, journaled and undone
    store      address pool and leases; a secret that outlives the process
    dataplane  ESP in the kernel (XFRM), or between a TUN device and a transport; of IKE it knows
               only Child SAs
    transport  whole datagrams over UDP, TCP, TLS, WebSocket, and the ladder of them; no IKE
    ike        the synchronous core: octets, paths and time in, outputs out
    auth       proving who a peer is
    crypto     what a transform ID computes
    wire       octets <-> frozen values
    errors, path, iana   shared words

An IKE message goes transport -> driver -> ``ike.endpoint`` -> ``ike.sa`` -> an exchange module, and
its answer the same way back. An ESP packet goes tun -> spd -> esp -> transport and back, in
batches, and touches neither the driver nor the core. Where the kernel has ESP, packets over UDP do
not come here at all.
"""

__version__ = "0.1.0"
