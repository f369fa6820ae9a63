"""The real cluster: corosync, pacemaker and pcs on three nodes in namespaces."""
