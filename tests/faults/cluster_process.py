"""A Ray cluster of several nodes on this machine, each with processes of its own.

Nodes come and go by lines on stdin: ``add CPUS`` and ``remove``, which kills the oldest one without warning.
Each is answered by a line; the first line is the cluster's address. It ends with stdin.
"""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster

if __name__ == "__main__":
    cluster = Cluster(
        initialize_head=True,
        connect=False,
        head_node_args={"num_cpus": 0, "include_dashboard": False},
    )
    print(cluster.address, flush=True)
    nodes = []
    for line in sys.stdin:
        what, *arguments = line.split()
        if what == "add":
            nodes.append(cluster.add_node(num_cpus=int(arguments[0]), wait=False))
        else:
            cluster.remove_node(nodes.pop(0), allow_graceful=False)
        print(what, flush=True)
    cluster.shutdown()
