"""The sandbox: a host with a real systemd and a real Docker engine, and the stand-in upstreams beside it."""
