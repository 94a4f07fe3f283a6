"""Order, groups and limits of the jobs that wait."""

from __future__ import annotations

from kontext_fast.server.jobs import Job
from kontext_fast.server.queue import MOST_OVERTAKINGS, JobQueue, Waiting
from tests.server.jobs import job


def queue_of(*jobs: Job, batch: int = 1, batch_pixels: int = 512 * 512) -> JobQueue:
    queue = JobQueue(32, batch=batch, batch_pixels=batch_pixels)
    for number, each in enumerate(jobs):
        queue.add(Waiting(each, float(number)))
    return queue


def taken(queue: JobQueue, lora: str | None = None, presets: tuple[str, ...] = ("baseline",)) -> list[Job]:
    return [waiting.job for waiting in queue.take(presets, lora)]


def test_jobs_leave_in_the_order_in_which_they_came() -> None:
    jobs = [job() for _ in range(3)]
    queue = queue_of(*jobs)
    assert [taken(queue) for _ in range(4)] == [[jobs[0]], [jobs[1]], [jobs[2]], []]


def test_queue_is_full_at_its_size() -> None:
    queue = JobQueue(2)
    queue.add(Waiting(job(), 0.0))
    assert not queue.is_full
    queue.add(Waiting(job(), 0.0))
    assert queue.is_full


def test_worker_gets_only_jobs_of_its_presets() -> None:
    other, own = job(preset="fast"), job()
    queue = queue_of(other, own)
    assert taken(queue) == [own]
    assert not queue.has_any(["baseline"])
    assert queue.has_any(["fast"])


def test_jobs_of_the_held_lora_go_first() -> None:
    plain, held = job(), job(lora="ink")
    queue = queue_of(plain, held)
    assert taken(queue, "ink") == [held]
    assert taken(queue, "ink") == [plain]


def test_job_is_passed_over_a_few_times_only() -> None:
    plain = job()
    queue = queue_of(plain, *(job(lora="ink") for _ in range(MOST_OVERTAKINGS + 3)))
    order = [taken(queue, "ink")[0] for _ in range(MOST_OVERTAKINGS + 1)]
    assert order.index(plain) == MOST_OVERTAKINGS


def test_batch_holds_like_jobs_up_to_its_size() -> None:
    first, unlike, second, double, third = job(), job(steps=3), job(), job(images=2), job()
    queue = queue_of(first, unlike, second, double, third, batch=3)
    assert taken(queue) == [first, second, third]
    assert taken(queue) == [unlike]


def test_large_images_are_never_batched() -> None:
    queue = queue_of(job(), job(), batch=4, batch_pixels=128 * 128 - 1)
    assert len(taken(queue)) == 1


def test_removed_job_is_gone() -> None:
    queue = queue_of(job())
    (waiting,) = queue
    assert queue.remove(waiting)
    assert not queue.remove(waiting)
    assert taken(queue) == []
