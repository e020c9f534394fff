"""A second opinion on vLLM V1: its scheduler without prefix caching, from the description alone.

Written from the rules that accompany the golden traces and the notes on vLLM's semantics, without a look at
`engine/core`, and sharing no code with it. It knows blocks only as numbers: nothing is shared. A request that
can never fit blocks the queue for ever, as it does in vLLM, and `defect` says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]
STUCK_AFTER = 3  # empty steps in a row, nothing left to arrive


@dataclass(eq=False)
class Job:
    """A request."""

    name: str
    position: int  # in the file
    arrival: tuple[int, int]
    prompt: int
    max_tokens: int
    priority: int
    length: int
    computed: int = 0
    blocks: int = 0
    ran: bool = False
    pending: int = 0  # tokens that plans in flight sample; of the asynchronous model, as is the next
    num_preemptions: int = 0


class ModelV1:
    """The scheduler of a scenario and the fake model behind it."""

    def __init__(self, scenario: dict[str, Any]) -> None:
        config = scenario["config"]
        self.block_size: int = config["block_size"]
        self.max_seqs: int = config["max_num_seqs"]
        self.max_tokens: int = config["max_num_batched_tokens"]
        self.window: int = config["max_model_len"]
        self.by_priority: bool = config["policy"] == "priority"
        self.chunked: bool = config["enable_chunked_prefill"]
        self.usable: int = config["num_blocks"] - 1  # one is the null block
        self.free = self.usable
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.defect: str | None = None
        """The first defect of the real scheduler that showed, in the step just decided or before."""
        jobs = [self._job(item, position) for position, item in enumerate(scenario["requests"])]
        self._arrivals = sorted(jobs, key=lambda job: job.arrival)

    @staticmethod
    def _job(item: dict[str, Any], position: int) -> Job:
        prompt = len(item["prompt_token_ids"])
        arrival = (item["arrival_step"], position)
        return Job(item["id"], position, arrival, prompt, item["max_tokens"], item.get("priority", 0), prompt)

    def records(self) -> Iterator[Record]:
        """The trace, in the golden format."""
        step = empty = 0
        while self._arrivals or self.waiting or self.running:
            self._arrive(step)
            record = {"step": step, **self._step()}
            empty = 0 if record["tokens"] or self._arrivals else empty + 1
            if empty == STUCK_AFTER and (self.waiting or self.running):
                self.defect = self.defect or "stuck"
                yield record | {"stuck": True}
                return
            yield record
            step += 1

    def _arrive(self, step: int) -> None:
        while self._arrivals and self._arrivals[0].arrival[0] <= step:
            self.waiting.append(self._arrivals.pop(0))
            self._note_if_hopeless(self.waiting[-1])
        self._sort_waiting()

    def _rank(self, job: Job) -> tuple[int, tuple[int, int]]:
        return job.priority, job.arrival

    def _sort_waiting(self) -> None:
        if self.by_priority:
            self.waiting.sort(key=self._rank)

    def _step(self) -> Record:
        batch, record = self._plan()
        return record | self._update(batch)

    def _plan(self) -> tuple[dict[Job, int], Record]:
        batch: dict[Job, int] = {}
        preempted: list[Job] = []
        self._run(batch, preempted)
        admitted = [] if preempted else self._admit(batch)
        new = [job for job in admitted if not job.ran]
        record: Record = {
            "tokens": [[job.name, tokens] for job, tokens in batch.items()],
            "new": [[job.name, 0] for job in new],
            "resumed": in_file_order([job for job in admitted if job.ran]),
            "preempted": in_file_order(preempted),
            "free_blocks": self.free,
            "running": [job.name for job in self.running],
            "waiting": [job.name for job in self.waiting],
        }
        for job in admitted:
            job.ran = True
        return batch, record

    def _run(self, batch: dict[Job, int], preempted: list[Job]) -> None:
        """Running requests in order; the batch keeps the order in which they were scheduled."""
        index, left = 0, self.max_tokens
        while index < len(self.running) and left > 0:
            job = self.running[index]
            tokens = min(self._behind(job), left)
            if not tokens:
                index += 1
                continue
            while not self._grow(job, tokens):
                victim = max(self.running, key=self._rank) if self.by_priority else self.running[-1]
                place = self.running.index(victim)
                del self.running[place]
                if victim in batch:  # already scheduled: its tokens go back to the budget
                    left += batch.pop(victim)
                    index -= 1
                elif place < index:  # passed over: the index stays, and the next request has no turn
                    self.defect = self.defect or "one skipped"
                self._preempt(victim)
                preempted.append(victim)
                if victim is job:
                    return  # those behind it stay, idle, for this step
            batch[job] = tokens
            left -= tokens
            index += 1

    def _behind(self, job: Job) -> int:
        """Tokens a running request would be given; none: it is passed over."""
        return job.length - job.computed

    def _grow(self, job: Job, tokens: int) -> bool:
        need = self._blocks(job.computed + tokens) - job.blocks
        if need > self.free:
            return False
        self.free -= need
        job.blocks += need
        return True

    def _preempt(self, job: Job) -> None:
        self.free += job.blocks
        job.blocks = job.computed = 0
        self.waiting.insert(0, job)
        self._sort_waiting()
        self._note_if_hopeless(job)

    def _admit(self, batch: dict[Job, int]) -> list[Job]:
        left = self.max_tokens - sum(batch.values())
        admitted: list[Job] = []
        while self.waiting and left > 0 and len(self.running) < self.max_seqs:
            job = self.waiting[0]
            whole = self._blocks(min(job.length, self.window))
            if whole > self.free or (job.length > left and not self.chunked):
                break
            tokens = min(job.length, left)
            self._grow(job, tokens)
            self.running.append(self.waiting.pop(0))
            admitted.append(job)
            batch[job] = tokens
            left -= tokens
        return admitted

    def _note_if_hopeless(self, job: Job) -> None:
        """It stands in the queue for ever; a prompt without room for output the front end would refuse."""
        too_big = self._blocks(job.length) > self.usable
        if too_big or job.length >= self.window or (job.length > self.max_tokens and not self.chunked):
            self.defect = self.defect or "stuck"

    def _ends(self, job: Job, length: int) -> bool:
        """Whether it ends when it is that long."""
        return length >= self.window or length - job.prompt >= job.max_tokens

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def _update(self, batch: dict[Job, int]) -> Record:
        sampled, finished = [], []
        for job, tokens in batch.items():
            job.computed += tokens
            if job.computed < job.length:
                continue
            job.length += 1
            sampled.append(job.name)
            if self._ends(job, job.length):
                finished.append(job)
                self.free += job.blocks
                self.running.remove(job)
        # The README has finished in batch order; the traces have it, like the others, in the file's order.
        return {"sampled": sampled, "finished": in_file_order(finished), "free_after": self.free}


def in_file_order(jobs: list[Job]) -> list[str]:
    return [job.name for job in sorted(jobs, key=lambda job: job.position)]
