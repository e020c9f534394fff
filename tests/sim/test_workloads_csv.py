"""Any CSV file with a column map, and the reader that fits a file that another one was given."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.core.spec import RequestSpec
from sim.workloads.azure import AzureTrace
from sim.workloads.base import Workload, WorkloadError
from sim.workloads.csv_trace import CsvTrace
from sim.workloads.mooncake import MooncakeTrace
from sim.workloads.sharegpt import LengthsCsv
from sim.workloads.sniff import known_format

MAP = {
    "arrival_column": "when",
    "prompt_column": "in",
    "output_column": "out",
    "client_column": "who",
    "priority_column": "prio",
    "request_id_column": "id",
    "max_tokens_column": "limit",
}
TABLE = """id,when,in,out,who,prio,limit,other
q1,1.5,100,10,ann,0,64,x
q2,0.25,200,20,,-1,5,y
q3,1.5,300,30,"bob, jr",2,64,z
"""


def write(folder: Path, text: str) -> str:
    path = folder / "trace.txt"
    path.write_text(text)
    return str(path)


def served(path: str, **options: object) -> list[RequestSpec]:
    return CsvTrace(path, **{**MAP, **options}).requests(1000)  # type: ignore[arg-type]


def test_every_column_is_where_the_map_says(tmp_path: Path) -> None:
    told = [
        (s.request_id, s.arrival_ns, s.num_prompt_tokens, s.num_output_tokens, s.client, s.priority)
        for s in served(write(tmp_path, TABLE))
    ]
    assert told == [
        ("q2", 0, 200, 20, None, -1),
        ("q1", 1_250_000_000, 100, 10, "ann", 0),
        ("q3", 1_250_000_000, 300, 30, "bob, jr", 2),
    ]
    assert [spec.max_tokens for spec in served(write(tmp_path, TABLE))] == [5, 64, 64]


def test_columns_that_are_not_named_are_not_read(tmp_path: Path) -> None:
    text = "num_prefill_tokens,num_decode_tokens,arrived_at,client\n7,3,5.5,ann\n"
    (spec,) = CsvTrace(write(tmp_path, text)).requests(1000)
    assert (spec.request_id, spec.client, spec.priority, spec.arrival_ns) == ("r00000", None, 0, 0)


@pytest.mark.parametrize(("unit", "factor"), [("s", 10**9), ("ms", 10**6), ("us", 10**3), ("ns", 1)])
def test_units(tmp_path: Path, unit: str, factor: int) -> None:
    text = TABLE.replace("1.5", "11").replace("0.25", "4")
    assert [s.arrival_ns for s in served(write(tmp_path, text), time_unit=unit)] == [
        0,
        7 * factor,
        7 * factor,
    ]


def test_seconds_since_1970_keep_their_nanoseconds(tmp_path: Path) -> None:
    text = TABLE.replace("1.5", "1700158546.680590003").replace("0.25", "1700158546.680590001")
    assert [spec.arrival_ns for spec in served(write(tmp_path, text))] == [0, 2, 2]


def test_timestamps(tmp_path: Path) -> None:
    text = TABLE.replace("1.5", "2024-02-29 00:00:01.0000001").replace("0.25", "2024-02-28T23:59:59Z")
    specs = served(write(tmp_path, text), time_unit="timestamp")
    assert [spec.arrival_ns for spec in specs] == [0, 2_000_000_100, 2_000_000_100]


ERRORS = {
    "no such column": (
        TABLE.replace("when", "then"),
        "no column when in its header; columns found: id, then, in, out, who, prio, limit, other",
    ),
    "no such text column": (TABLE.replace("who", "whom"), "no column who in its header; columns found: id, "),
    "time": (TABLE.replace("0.25", "noon"), "line 3, column when: 'noon' is not a time: a number in"),
    "time without end": (TABLE.replace("0.25", "inf"), "line 3, column when: 'inf' is not a time"),
    "tokens": (TABLE.replace("300", "3.5"), "line 4, column in: '3.5' is not a whole number of tokens"),
    "priority": (TABLE.replace(",2,64", ",high,64"), "line 4, column prio: 'high' is not a whole number"),
    "limit": (TABLE.replace(",5,y", ",0,y"), "line 3, column limit: '0' is no limit: must be at least 1"),
    "id twice": (TABLE.replace("q3", "q1"), "line 4, column id: 'q1' is the id of line 2 too; ids are"),
    "id empty": (TABLE.replace("q2", ""), "line 3, column id: is empty; every request needs an id"),
}


@pytest.mark.parametrize(("text", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_name_file_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(WorkloadError, match=re.escape(message)) as error:
        served(path)
    assert path in str(error.value) and "looks like" not in str(error.value)


FILES = {
    "azure": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n",
    "csv": "arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,374,44\n",
    "sharegpt": "num_prefill_tokens,num_decode_tokens,num_total_tokens\n74,918,992\n",
    "mooncake": '{"timestamp": 0, "input_length": 67, "output_length": 5, "hash_ids": [0]}\n',
    "prompts": '{"prompt": "Hello"}\n',
    "sharegpt_json": json.dumps([{"id": "a", "conversations": [{"from": "human", "value": "Hello"}]}]),
}
READERS: dict[str, Callable[[str], Workload]] = {
    "azure": AzureTrace,
    "csv": CsvTrace,
    "sharegpt": lambda path: LengthsCsv(path, rate_per_s=1.0),
    "mooncake": MooncakeTrace,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("fitting", FILES)
def test_a_reader_of_another_format_names_the_one_that_fits(
    tmp_path: Path, reader: str, fitting: str
) -> None:
    path = write(tmp_path, FILES[fitting])
    workload = READERS[reader](path)
    if reader == fitting or (reader, fitting) == ("sharegpt", "csv"):  # which has the lengths too
        assert workload.requests(1000)
        return
    with pytest.raises(WorkloadError, match=rf"; this looks like .*: workload={fitting}$"):
        workload.requests(1000)


def test_what_nobody_knows_is_not_named(tmp_path: Path) -> None:
    for text in ("", "\x00\x01", "a single line of words", '{"a": 1}', "{", '[{"a": 1}]'):
        assert known_format(Path(write(tmp_path, text))) is None, text
    assert known_format(Path(write(tmp_path, "a,b\n1,2\n"))) == ("a CSV file", "csv")
    openai = '{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": []}}'
    assert known_format(Path(write(tmp_path, "\ufeff" + openai))) == (
        "prompts, one JSON object a line",
        "prompts",
    )
