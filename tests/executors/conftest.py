"""A Ray cluster of two machines, which are two sets of processes here."""

import os

import pytest

#: On a busy machine processes start late and answer late, which is no reason to take them for dead.
PATIENT = {
    "worker_register_timeout_seconds": 600,
    "health_check_initial_delay_ms": 30_000,
    "health_check_period_ms": 1_000,
    "health_check_failure_threshold": 20,
}


@pytest.fixture(scope="session")
def ray_cluster():
    """One for the session: starting takes seconds. Nodes are added and removed by who needs others."""
    pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80 << 20}
    head = {**small, "include_dashboard": False, "_system_config": PATIENT}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add = lambda: cluster.add_node(**small)
    yield cluster
    cluster.shutdown()
