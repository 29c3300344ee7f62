"""The control table: robots in the simulated workcell, in lock step, by the protocol of docs/control_protocol.md."""
