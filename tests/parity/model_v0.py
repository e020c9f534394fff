"""A second opinion on vLLM 0.4.2: its scheduler and block manager from the description alone.

Written from the rules that accompany the golden traces, without a look at `engine/core`, and sharing no code
with it: where both agree on a scenario no one has recorded, they do so for the same reason. It keeps the
oddities, the defects too (a full host pool raises, an infeasible swapped group leaks, a swapped group that
can never return blocks those behind it), and says in `defect` when one shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Record = dict[str, Any]
STUCK_AFTER = 3  # empty steps in a row, nothing left to arrive


class SchedulerDiedError(Exception):
    """What ends the real engine: its scheduler raised."""


class Pool:
    """Physical blocks, each with the number of tables that hold it."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.holders: Counter[int] = Counter()
        self._next = 0

    @property
    def free(self) -> int:
        return self.num_blocks - len(self.holders)

    def take(self) -> int:
        assert self.free > 0, "the rules never take from an empty pool"
        self._next += 1
        self.holders[self._next] = 1
        return self._next

    def drop(self, block: int) -> None:
        self.holders[block] -= 1
        if not self.holders[block]:
            del self.holders[block]


@dataclass(eq=False)
class Group:
    """A request: n parallel samples that share a prompt; all its sequences have one length."""

    name: str
    rank: int  # by arrival
    prompt: int
    max_tokens: int
    n: int
    length: int = 0
    computed: int = 0
    in_prefill: bool = True
    forked: bool = False
    tables: list[list[int]] = field(default_factory=lambda: [[]])  # one per living sequence

    @property
    def seqs(self) -> int:
        """Sequences as the limits count them: all of them while there is only the prompt."""
        return len(self.tables) if self.forked else self.n

    @property
    def todo(self) -> int:
        return self.length - self.computed if self.in_prefill else len(self.tables)

    @property
    def blocks(self) -> set[int]:
        return {block for table in self.tables for block in table}


@dataclass
class Step:
    """What one call of the scheduler decides."""

    tokens_left: int
    seqs: int = 0
    admitted: list[tuple[Group, int]] = field(default_factory=list)
    prefills: list[tuple[Group, int]] = field(default_factory=list)
    decodes: list[tuple[Group, int]] = field(default_factory=list)
    prefills_in: list[tuple[Group, int]] = field(default_factory=list)
    decodes_in: list[tuple[Group, int]] = field(default_factory=list)
    swapped_in: list[Group] = field(default_factory=list)
    swapped_out: list[Group] = field(default_factory=list)
    recomputed: list[Group] = field(default_factory=list)
    dropped: list[Group] = field(default_factory=list)
    dropped_swapped: list[Group] = field(default_factory=list)
    blocks_out: int = 0
    blocks_in: int = 0
    copies: int = 0

    @property
    def batch(self) -> list[tuple[Group, int]]:
        return self.admitted + self.prefills + self.prefills_in + self.decodes + self.decodes_in


class ModelV0:
    """The scheduler of a scenario and the fake model behind it."""

    def __init__(self, scenario: dict[str, Any]) -> None:
        config = scenario["config"]
        self.block_size: int = config["block_size"]
        self.max_seqs: int = config["max_num_seqs"]
        self.max_tokens: int = config["max_num_batched_tokens"]
        self.window: int = config["max_model_len"]
        self.mode: str | None = config["preemption_mode"]
        self.chunked: bool = config["chunked_prefill"]
        self.gpu = Pool(config["num_blocks"])
        self.cpu = Pool(config["num_cpu_blocks"])
        self.watermark = int(config["watermark"] * config["num_blocks"])
        self.waiting: list[Group] = []
        self.running: list[Group] = []
        self.swapped: list[Group] = []
        self.defect: str | None = None
        """The first defect of the real scheduler that showed, in the step just decided or before."""
        order = sorted(
            enumerate(scenario["requests"]), key=lambda indexed: (indexed[1]["arrival_step"], indexed[0])
        )
        self._arrivals = [
            (item["arrival_step"], self._group(item, rank)) for rank, (_, item) in enumerate(order)
        ]

    @staticmethod
    def _group(item: dict[str, Any], rank: int) -> Group:
        prompt = len(item["prompt_token_ids"])
        return Group(item["id"], rank, prompt, item["max_tokens"], item.get("n", 1), length=prompt)

    def records(self) -> Iterator[Record]:
        """The trace, in the golden format; it ends as the golden ones do."""
        step = empty = 0
        while self._arrivals or self.waiting or self.running or self.swapped:
            while self._arrivals and self._arrivals[0][0] <= step:
                self.waiting.append(self._arrivals.pop(0)[1])
                self._note(self.waiting[-1].n > self.max_seqs, "stuck")
                self._note(self.chunked and self.waiting[-1].prompt > self.window, "window")
            now = Step(self.max_tokens)
            try:
                self._schedule(now)
            except SchedulerDiedError as error:
                self.defect = self.defect or "raised"
                yield self._last_words(step, now, error)
                return
            record = {"step": step, **self._decisions(now), **self._outcome(now)}
            idle = not (now.batch or now.blocks_out or now.blocks_in or self._arrivals)
            empty = empty + 1 if idle else 0
            if empty == STUCK_AFTER and (self.waiting or self.running or self.swapped):
                self.defect = self.defect or "stuck"
                yield record | {"stuck": True}
                return
            yield record
            step += 1

    # What is scheduled

    def _schedule(self, now: Step) -> None:
        if self.chunked:
            self._run(now)
            if not (now.swapped_out or now.recomputed):
                self._swap_in(now)
            self._admit(now)
        else:
            now.seqs = sum(group.seqs for group in self.running)
            if not self.swapped:
                self._admit(now)
            if not now.admitted:
                self._run(now)
                if not (now.swapped_out or now.recomputed):
                    self._swap_in(now)
        # Victims are put back only now: what they freed was open to others in between.
        for group in now.recomputed:
            self.waiting.insert(0, group)
        self.swapped += now.swapped_out
        for part in (now.admitted, now.decodes, now.prefills, now.decodes_in, now.prefills_in):
            self.running += [group for group, _ in part]

    def _admit(self, now: Step) -> None:
        limit = self.window if self.chunked else min(self.window, self.max_tokens)
        while self.waiting:
            group = self.waiting[0]
            tokens = min(group.length, now.tokens_left) if self.chunked else group.length
            need = -(-group.length // self.block_size)
            if tokens > limit or self.gpu.num_blocks - need < self.watermark:
                now.dropped.append(self.waiting.pop(0))
                continue
            if self.gpu.free - need < self.watermark:
                return
            if not self._within_budget(now, group, tokens):
                return
            self.waiting.pop(0)
            group.tables = [[self.gpu.take() for _ in range(need)]]
            now.admitted.append((group, tokens))
            self._charge(now, tokens, group.seqs)

    def _run(self, now: Step) -> None:
        self.running.sort(key=lambda group: group.rank)
        while self.running:
            group = self.running[0]
            clip = self.chunked and len(group.tables) == 1
            tokens = min(group.todo, now.tokens_left) if clip else group.todo
            if tokens == 0:
                return
            # Unclipped, a forked group is not stopped by an empty budget: it overdraws it, or dies trying.
            self._note(tokens > now.tokens_left, "overdraw")
            self.running.pop(0)
            if not self._make_room(now, group):
                continue
            self._append_slots(now, group)
            (now.prefills if group.in_prefill else now.decodes).append((group, tokens))
            # In the default mode the running groups are in the count of sequences from the start.
            self._charge(now, tokens, group.seqs if self.chunked else 0)

    def _make_room(self, now: Step, group: Group) -> bool:
        """One free block per sequence, due or not; False: the group itself had to go."""
        while self.gpu.free < len(group.tables):
            victim = self.running.pop() if self.running else group
            self._preempt(now, victim)
            if victim is group:
                return False
        return True

    def _swap_in(self, now: Step) -> None:
        self.swapped.sort(key=lambda group: group.rank)
        while self.swapped:
            group = self.swapped[0]
            held = group.blocks
            need = len(held) + len(group.tables)
            if need > self.gpu.num_blocks:
                now.dropped_swapped.append(self.swapped.pop(0))
                self._note(True, "leak")
                continue
            if self.gpu.free - need < self.watermark:
                # It is alone, and still too big: no one will ever make room for it.
                self._note(self.gpu.free == self.gpu.num_blocks, "watermark livelock")
                return
            tokens = group.todo  # all of it, chunked or not
            if not self._within_budget(now, group, tokens):
                could_start = now.tokens_left > 0 and now.seqs + group.seqs <= self.max_seqs
                self._note(tokens > self.max_tokens and could_start, "chunk livelock")
                return
            self.swapped.pop(0)
            now.blocks_in += self._move(group, self.cpu, self.gpu)
            self._append_slots(now, group)
            now.swapped_in.append(group)
            (now.prefills_in if group.in_prefill else now.decodes_in).append((group, tokens))
            self._charge(now, tokens, group.seqs)

    def _within_budget(self, now: Step, group: Group, tokens: int) -> bool:
        return 0 < tokens <= now.tokens_left and now.seqs + group.seqs <= self.max_seqs

    @staticmethod
    def _charge(now: Step, tokens: int, seqs: int) -> None:
        now.tokens_left -= tokens
        now.seqs += seqs
        if now.tokens_left < 0:
            raise SchedulerDiedError("the decodes of a forked group overdraw the budget")

    def _note(self, shows: bool, defect: str) -> None:
        if shows:
            self.defect = self.defect or defect

    # Blocks

    def _append_slots(self, now: Step, group: Group) -> None:
        need = -(-group.length // self.block_size)
        for table in group.tables:
            if len(table) < need:
                table.append(self.gpu.take())
            elif self.gpu.holders[table[-1]] > 1:
                old, table[-1] = table[-1], self.gpu.take()
                self.gpu.drop(old)
                now.copies += 1

    def _preempt(self, now: Step, victim: Group) -> None:
        mode = self.mode or ("recompute" if victim.seqs == 1 else "swap")
        if mode == "swap":
            if len(victim.blocks) > self.cpu.free:
                raise SchedulerDiedError("lack of CPU swap space")
            now.blocks_out += self._move(victim, self.gpu, self.cpu)
            now.swapped_out.append(victim)
            return
        if len(victim.tables) > 1:
            raise SchedulerDiedError("recompute of several sequences")
        # Its prompt fills the pool and takes several steps: each time, the second one ends here again.
        self._note(victim.in_prefill and len(victim.blocks) == self.gpu.num_blocks, "recompute livelock")
        self._free(victim)
        victim.computed, victim.in_prefill = 0, True
        now.recomputed.append(victim)

    @staticmethod
    def _move(group: Group, source: Pool, target: Pool) -> int:
        """Every distinct block once; returns their number."""
        moved: dict[int, int] = {}
        for table in group.tables:
            for position, block in enumerate(table):
                if block in moved:
                    target.holders[moved[block]] += 1
                else:
                    moved[block] = target.take()
                source.drop(block)
                table[position] = moved[block]
        return len(moved)

    def _free(self, group: Group) -> None:
        for table in group.tables:
            for block in table:
                self.gpu.drop(block)
        group.tables = [[]]

    # What comes of it

    def _decisions(self, now: Step) -> Record:
        batch, dropped = now.batch, now.dropped + now.dropped_swapped
        record = {
            "tokens": [[group.name, tokens] for group, tokens in batch],
            "prefill": [group.name for group, _ in batch if group.in_prefill],
            "swapped_out": _names(now.swapped_out),
            "swapped_in": _names(now.swapped_in),
            "preempted_recompute": _names(now.recomputed),
            "num_blocks_to_swap_in": now.blocks_in,
            "num_blocks_to_swap_out": now.blocks_out,
            "num_blocks_to_copy": now.copies,
            "num_batched_tokens": self.max_tokens - now.tokens_left,
            "free_gpu_blocks": self.gpu.free,
            "free_cpu_blocks": self.cpu.free,
            "running": _names(self.running),
            "waiting": _names(self.waiting),
            "swapped": _names(self.swapped),
            "ignored": _names(dropped),
        }
        if self.chunked and now.dropped_swapped:
            record["ignored_unreported"] = _names(now.dropped_swapped)
        return record

    def _outcome(self, now: Step) -> Record:
        sampled: list[Group] = []
        forked: list[Group] = []
        finished: list[Group] = []
        for group, tokens in now.batch:
            group.computed += tokens if group.in_prefill else 1
            if group.computed < group.length:
                continue
            sampled.append(group)
            group.in_prefill = False
            group.length += 1
            if not group.forked:
                group.forked = True
                self._fork(group, forked)
            if group.length - group.prompt == group.max_tokens or group.length > self.window:
                finished.append(group)
                self._free(group)
        self.running = [group for group in self.running if group not in finished]
        record: Record = {
            "sampled": _names(sampled),
            "finished": _names(finished),
            "free_gpu_after": self.gpu.free,
            "free_cpu_after": self.cpu.free,
        }
        if forked:
            record["forked"] = _names(forked)
        return record

    def _fork(self, group: Group, forked: list[Group]) -> None:
        if group.n == 1:
            return
        forked.append(group)
        for _ in range(group.n - 1):
            group.tables.append(list(group.tables[0]))
        self.gpu.holders.update(block for table in group.tables[1:] for block in table)

    def _last_words(self, step: int, now: Step, error: SchedulerDiedError) -> Record:
        return {
            "step": step,
            "raised": str(error),
            "swapped_out": _names(now.swapped_out),
            "swapped_in": [],
            "preempted_recompute": _names(now.recomputed),
            "free_gpu_blocks": self.gpu.free,
            "free_cpu_blocks": self.cpu.free,
        }


def _names(groups: list[Group]) -> list[str]:
    return [group.name for group in groups]
