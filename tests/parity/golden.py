"""Run a golden scenario through our core with the fake model of the golden traces, and say what it
decided.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.core.events import EventKind
from engine.core.laws import LawfulScheduler
from engine.core.plan import Finish, FinishReason, PreemptionKind, StepPlan, StepResult, TransferKind
from engine.core.policies.admission import FullPrompt, Watermark
from engine.core.policies.base import Policies
from engine.core.policies.batching import ArrivalFirstChunked, DecodeFirst, PrefillFirst
from engine.core.policies.order import Fcfs, Priority
from engine.core.policies.reservation import OnDemand, WholePrompt
from engine.core.policies.restore import Recompute, Swap, SwapIfSeveral
from engine.core.policies.victim import LastAdmitted, LowestPriority
from engine.core.request import Request
from engine.core.spec import Capacity, Limits, RequestSpec

GOLDEN = Path(os.environ.get("PAGETWIN_GOLDEN", Path(__file__).parent / "golden"))
"""Folder with `vllm_v0` and `vllm_v1`; the traces in the repository unless PAGETWIN_GOLDEN names others."""
NS_PER_STEP = 1_000_000_000
NS_PER_INDEX = 100_000  # within a step, requests arrive in the order of the file

Record = dict[str, Any]


def load(engine: str, name: str) -> tuple[dict[str, Any], list[Record]]:
    """A scenario and the records of the real scheduler.

    Raises:
        FileNotFoundError: the folder has no such scenario or trace.
    """
    scenario, trace = _paths(engine, name)
    return json.loads(_text(scenario)), [json.loads(line) for line in _text(trace).splitlines()]


def _paths(engine: str, name: str) -> tuple[Path, Path]:
    """The scenario and the trace; each may be there gzipped. `vllm_v1_async` plays the scenarios of V1."""
    if engine == "vllm_v1_async":
        folder, trace = GOLDEN / "vllm_v1", f"trace_async_{name}.jsonl"
    else:
        folder, trace = GOLDEN / engine, f"trace_{name}.jsonl"
    return folder / f"scen_{name}.json", folder / trace


def _zipped(path: Path) -> Path:
    return path.with_name(f"{path.name}.gz")


def _text(path: Path) -> str:
    """The text of a file that may be there gzipped."""
    if path.exists():
        return path.read_text(encoding="utf-8")
    return gzip.decompress(_zipped(path).read_bytes()).decode()


def names(engine: str, prefix: str = "") -> list[str]:
    """Scenarios that have a trace and whose name starts with `prefix`."""
    folder = _paths(engine, "")[0].parent
    found = {
        path.name.removeprefix("scen_").split(".json")[0] for path in folder.glob(f"scen_{prefix}*.json*")
    }
    traces = {name: _paths(engine, name)[1] for name in found}
    return sorted(name for name, trace in traces.items() if trace.exists() or _zipped(trace).exists())


def policies_v0(config: dict[str, Any]) -> Policies:
    """What conf/preset/vllm_v0.yaml composes, with the options of the scenario."""
    restore = {"swap": Swap(), "recompute": Recompute(), None: SwapIfSeveral()}[config["preemption_mode"]]
    return Policies(
        order=Fcfs(sorts=("running", "swapped")),
        admission=Watermark(fraction=config["watermark"]),
        batching=ArrivalFirstChunked() if config["chunked_prefill"] else PrefillFirst(),
        victim=LastAdmitted(),
        restore=restore,
        reservation=WholePrompt(),
    )


def policies_v1(config: dict[str, Any]) -> Policies:
    """What conf/preset/vllm_v1.yaml composes, with the options of the scenario."""
    fcfs = config["policy"] == "fcfs"
    return Policies(
        order=Fcfs() if fcfs else Priority(),
        admission=FullPrompt(),
        batching=DecodeFirst(splits_prompts=config["enable_chunked_prefill"]),
        victim=LastAdmitted() if fcfs else LowestPriority(),
        restore=Recompute(),
        reservation=OnDemand(),
    )


def without(record: Record, names: frozenset[str]) -> Record:
    """A record of either side, but for requests that never get any further than the waiting queue."""
    waiting_room = {key: record[key] for key in ("waiting", "rejected") if key in record}
    kept = {key: [name for name in value if name not in names] for key, value in waiting_room.items()}
    return {**record, **kept}


@dataclass
class Run:
    """A scheduler in the hands of the golden step loop: arrivals, schedule, one fake token each, commit."""

    scheduler: LawfulScheduler
    specs: list[RequestSpec]

    @classmethod
    def of(cls, engine: str, scenario: dict[str, Any]) -> Run:
        config = scenario["config"]
        is_v0 = engine == "vllm_v0"
        # V1 keeps one block as a placeholder, which the number in the scenario includes.
        num_blocks = config["num_blocks"] - (0 if is_v0 else 1)
        capacity = Capacity(num_blocks, config.get("num_cpu_blocks", 0), config["block_size"])
        # V0 ends a sequence when it is longer than its max_model_len, V1 and ours when it is as long.
        window = config["max_model_len"] + (1 if is_v0 else 0)
        limits = Limits(config["max_num_seqs"], config["max_num_batched_tokens"], window)
        policies = policies_v0(config) if is_v0 else policies_v1(config)
        specs = [
            RequestSpec(
                request_id=item["id"],
                arrival_ns=item["arrival_step"] * NS_PER_STEP + index * NS_PER_INDEX,
                num_prompt_tokens=len(item["prompt_token_ids"]),
                max_tokens=item["max_tokens"],
                n=item.get("n", 1),
                priority=item.get("priority", 0) if config["policy"] == "priority" else 0,
            )
            for index, item in enumerate(scenario["requests"])
        ]
        specs.sort(key=lambda spec: spec.arrival_ns)
        return cls(LawfulScheduler(capacity, limits, policies), specs)

    @property
    def too_long(self) -> frozenset[str]:
        """Requests whose prompts leave no room in the window.

        Ours are rejected on arrival. V0 looks at a prompt when it is at the head of the queue, and only at
        the part of it that the token budget allows; V1 leaves that to its front end.
        """
        window = self.scheduler.limits.max_model_len
        return frozenset(spec.request_id for spec in self.specs if spec.num_prompt_tokens >= window)

    def with_policies(self, **changes: Any) -> Run:
        """The same scenario under other policies."""
        old = self.scheduler
        capacity = Capacity(
            old.state.kv.device.num_blocks, old.state.kv.host.num_blocks, old.state.kv.block_size
        )
        scheduler = LawfulScheduler(capacity, old.limits, replace(old.policies, **changes))
        return Run(scheduler, self.specs)

    def records(self, num_steps: int) -> Iterator[Record]:
        """One record a step, in the words of the golden traces."""
        scheduler, position = self.scheduler, 0
        for step in range(num_steps):
            now_ns = step * NS_PER_STEP
            while position < len(self.specs) and self.specs[position].arrival_ns < now_ns + NS_PER_STEP:
                # All arrivals of a step come before it; their fractions of a step only order them.
                scheduler.add(Request(self.specs[position]), now_ns)
                if self.specs[position].request_id in self.too_long:
                    assert self.specs[position].request_id not in scheduler.state.requests
                position += 1
            plan = scheduler.schedule(now_ns)
            record = self._queues()
            record |= self._decisions(plan) if plan is not None else {}
            if plan is not None:
                record |= self._commit(plan, now_ns)
            record |= {
                "free_after": scheduler.state.kv.device.num_free,
                "free_host_after": scheduler.state.kv.host.num_free,
            }
            yield {"step": step, **record}

    def _queues(self) -> Record:
        scheduler = self.scheduler
        return {
            "running": [request.id for request in scheduler.state.running],
            "waiting": [request.id for request in scheduler.state.waiting],
            "swapped": [request.id for request in scheduler.state.swapped],
            "free": scheduler.state.kv.device.num_free,
            "free_host": scheduler.state.kv.host.num_free,
        }

    def _decisions(self, plan: StepPlan) -> Record:
        requests = self.scheduler.state.requests
        moved = {
            kind: sum(len(transfer.src) for transfer in plan.transfers if transfer.kind is kind)
            for kind in TransferKind
        }
        return {
            "tokens": [[chunk.request_id, chunk.num_tokens * len(chunk.seqs)] for chunk in plan.chunks],
            "prefill": [
                c.request_id for c in plan.chunks if c.start < requests[c.request_id].num_prefill_tokens
            ],
            "swapped_out": [p.request_id for p in plan.preemptions if p.kind is PreemptionKind.SWAP],
            "recomputed": [p.request_id for p in plan.preemptions if p.kind is PreemptionKind.RECOMPUTE],
            "swapped_in": list(plan.resumed),
            "new": [i for i in plan.admitted if requests[i].num_preemptions == 0],
            "readmitted": [i for i in plan.admitted if requests[i].num_preemptions > 0],
            "blocks_out": moved[TransferKind.SWAP_OUT],
            "blocks_in": moved[TransferKind.SWAP_IN],
            "blocks_copied": moved[TransferKind.COPY],
            "num_tokens": plan.num_tokens,
            "rejected": [rejection.request_id for rejection in plan.rejections],
        }

    def _commit(self, plan: StepPlan, now_ns: int) -> Record:
        finished = []
        for chunk in plan.chunks:
            request = self.scheduler.state.requests[chunk.request_id]
            length = request.num_tokens  # the token of this step included
            window = self.scheduler.limits.max_model_len
            if length - request.num_prompt_tokens >= request.max_tokens or length >= window:
                finished += [Finish(chunk.request_id, seq, FinishReason.LENGTH) for seq in chunk.samples]
        forked = [c.request_id for c in plan.chunks if len(c.samples) > len(c.seqs)]
        events = self.scheduler.commit(plan, StepResult(0, tuple(finished)), now_ns)
        return {
            "sampled": [chunk.request_id for chunk in plan.chunks if chunk.samples],
            "forked": forked,
            "finished": [event.request_id for event in events if event.kind is EventKind.FINISHED],
        }
