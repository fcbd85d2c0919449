"""Every executor does every job and gives the same; a worker that dies costs its job nothing but time."""

import pickle
import threading
import time
from concurrent.futures import Future

import pytest
import toy
from toy import Squares

from ctxedit.errors import InputError, OutputError, ResourceError
from ctxedit.executors import InProcess, Lost, Overseer
from ctxedit.executors.base import Answer, Worker, hand_out
from ctxedit.executors.processes import Processes


class Log(Overseer):
    """What was told."""

    def __init__(self):
        self.started_at, self.ended_at, self.warnings = [], [], []

    def started(self, job, worker):
        self.started_at.append((job, worker))

    def ended(self, job, worker):
        self.ended_at.append((job, worker))

    def warn(self, text):
        self.warnings.append(text)


def run(executor, work, jobs):
    log = Log()
    found = list(executor.run(work, jobs, log))
    numbers = sorted((job, result) for job, result in found if isinstance(result, int))
    return numbers, [result for _, result in found if not isinstance(result, int)], log


JOBS = [1, 2, 3, 4, 5]
WANTED = [(job, job * job) for job in JOBS]


def test_this_process_does_the_jobs_in_order_with_as_many_threads_as_asked(tmp_path):
    import torch

    before = torch.get_num_threads()
    numbers, facts, log = run(InProcess(threads=2), Squares(tmp_path), JOBS)
    assert numbers == WANTED and {fact["threads"] for fact in facts} == {2}
    assert {fact["prepared"] for fact in facts} == {1} and torch.get_num_threads() == before
    assert log.started_at == log.ended_at == [(job, "") for job in JOBS]
    assert InProcess(2).describe() == "this process, 2 threads"
    assert list(InProcess().run(Squares(tmp_path), [], Log())) == []


def test_processes_share_the_jobs_and_one_that_dies_is_replaced(tmp_path):
    numbers, facts, log = run(Processes(2, 1), Squares(tmp_path, deadly=(2,), always=(4,)), JOBS)
    assert numbers == [pair for pair in WANTED if pair[0] != 4]
    (lost,) = (fact for fact in facts if isinstance(fact, Lost))
    assert "died 3 times" in lost.reason
    facts = [fact for fact in facts if fact is not lost]
    assert {fact["threads"] for fact in facts} == {1} == {fact["prepared"] for fact in facts}
    assert len({fact["pid"] for fact in facts}) >= 2
    assert [job for job, _ in log.started_at] == JOBS == sorted(job for job, _ in log.ended_at)
    assert {worker for _, worker in log.started_at} == {"worker 1", "worker 2"}
    assert {f"warned of {job}" for job in (1, 2, 3, 5)} <= set(log.warnings)
    tried = (tmp_path / "done.txt").read_text().split()
    assert sorted(tried) == list("12234445"), "what was done is not done again"


def test_an_error_of_the_work_ends_it_and_stops_who_is_still_at_work(tmp_path):
    error, began = OutputError("the disk is full", "free some"), time.monotonic()
    work = Squares(tmp_path, fails={2: error}, slow=(1,))
    with pytest.raises(OutputError, match="the disk is full") as caught:
        run(Processes(2, 1), work, [1, 2, 3, 4])
    assert caught.value.hint == "free some"
    assert "4" not in (tmp_path / "done.txt").read_text().split()
    assert time.monotonic() - began < 55, "the sleeping one was not waited for"


def test_errors_travel_with_their_hints():
    error = pickle.loads(pickle.dumps(InputError("a clip", "another")))
    assert (error.message, error.hint, error.exit_code) == ("a clip", "another", 3)


@pytest.mark.slow
def test_a_cluster_of_which_a_machine_is_lost_does_every_job(tmp_path, ray_cluster):
    """The second machine goes while it is at work: what it was doing is done on the first, the rest once."""
    import ray

    from ctxedit.executors.cluster import Cluster, Needs

    ray.cloudpickle.register_pickle_by_value(toy)  # the cluster's processes do not see this folder
    second = ray_cluster.add()

    def lose():
        toy.wait_for(tmp_path, (3, 4))
        ray_cluster.remove_node(second, allow_graceful=False)

    losing, log = threading.Thread(target=lose, daemon=True), Log()
    losing.start()
    with Cluster(ray_cluster.address, Needs()) as executor:
        assert executor.workers == 2 and executor.describe().startswith("2 workers on the Ray cluster")
        # Both machines have a worker before the first job ends; both are at work when one is lost.
        assert run(executor, Squares(tmp_path, meet=(1, 2)), [1, 2])[0] == [(1, 1), (2, 4)]
        found = list(executor.run(Squares(tmp_path, meet=(3, 4), pause=5.0), [3, 4, 5, 6], log))
    losing.join(60)
    assert sorted((job, result) for job, result in found if isinstance(result, int)) == [
        (3, 9), (4, 16), (5, 25), (6, 36),
    ]  # fmt: skip
    tried = (tmp_path / "done.txt").read_text().split()
    assert len(tried) == 7 and set(tried) == set("123456"), "one job is done again, which was lost"
    assert tried.count("3") + tried.count("4") == 3
    assert {worker[:9] for _, worker in log.started_at} == {"worker 1 ", "worker 2 "}
    assert any("died: worker" in text for text in log.warnings)
    facts = [result for _, result in found if not isinstance(result, int)]
    assert {fact["threads"] for fact in facts} == {1} == {fact["prepared"] for fact in facts}


class Fake(Worker):
    """A worker without a process: opens late or never, and dies at some jobs."""

    def __init__(self, name, opens=True, dies=(), place="here"):
        self.name, self.opens, self.dies, self.place = name, opens, list(dies), place
        self.retries, self.died, self.closed = 1, (KeyError,), False

    def open(self):
        future = Future()
        if self.opens:
            future.set_result(Answer(f"{self.name} {self.place}"))
        return future

    def submit(self, job):
        future = Future()
        if job in self.dies:
            self.dies.remove(job)
            future.set_exception(KeyError(job))
        else:
            future.set_result(Answer(f"{self.name} {self.place}", [job * job], [f"warned of {job}"]))
        return future

    def close(self):
        self.closed = True


def test_jobs_go_to_whoever_is_open_and_those_of_a_dead_worker_are_tried_again():
    """What a cluster does to the loop: one worker never starts, one loses a job once, another for good."""
    log, workers = Log(), [Fake("a", dies=(2,)), Fake("b", opens=False), Fake("c", dies=(3, 3))]
    found = list(hand_out(workers, [1, 2, 3, 4], log))
    assert sorted(job for job, _ in found) == [1, 2, 3, 4], "each once"
    assert all(isinstance(result, Lost) or result == job * job for job, result in found)
    assert all(worker.closed for worker in workers)
    assert sorted(job for job, _ in log.started_at) == [1, 2, 3, 4] == sorted(job for job, _ in log.ended_at)
    assert not any(worker.startswith("b") for _, worker in log.started_at)


def test_a_worker_that_cannot_start_ends_the_run():
    class Broken(Fake):
        def open(self):
            future = Future()
            future.set_exception(KeyError("no such module"))
            return future

    workers = [Broken("a")]
    with pytest.raises(ResourceError, match="a failed to start: KeyError"):
        list(hand_out(workers, [1], Log()))
    assert workers[0].closed
