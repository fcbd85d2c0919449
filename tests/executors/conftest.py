"""A Ray cluster of two machines, which are two sets of processes here."""

import os

import pytest


@pytest.fixture(scope="session")
def ray_cluster():
    """One for the session: starting takes seconds. Nodes are added and removed by who needs others."""
    pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    cluster.add = lambda: cluster.add_node(**small)
    yield cluster
    cluster.shutdown()
