"""Readers of recorded traces: exact values from small files, and an error for each kind of bad input."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from sim.workloads.azure import AzureTrace, timestamp_ns
from sim.workloads.base import Workload, WorkloadError
from sim.workloads.mooncake import MooncakeTrace
from sim.workloads.shape import Shape
from sim.workloads.sharegpt import LengthsCsv
from sim.workloads.table import token_count

WINDOW = 10_000
AS_IS = Shape(fit_lengths="none")

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224671,879,55
"""
LENGTHS = """num_prefill_tokens,num_decode_tokens,num_total_tokens
74,918,992
290,905,1195
"""
MOONCAKE = """{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}
{"timestamp": 0, "input_length": 7322, "output_length": 490, "hash_ids": [0, 14]}
{"timestamp": 2999, "input_length": 891, "output_length": 1, "hash_ids": [0, 28]}
{"timestamp": 6000, "input_length": 1000, "output_length": 20, "hash_ids": [0, 28]}
"""


def write(folder: Path, text: str) -> str:
    path = folder / "trace.txt"
    path.write_bytes(text.encode())
    return str(path)


def lengths(workload: Workload) -> list[tuple[str, int, int | None]]:
    specs = workload.requests(WINDOW)
    return [(spec.request_id, spec.num_prompt_tokens, spec.num_output_tokens) for spec in specs]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("prefix", ["", "\ufeff"])
def test_azure_arrivals_are_exact_to_100_ns(tmp_path: Path, newline: str, prefix: str) -> None:
    text = prefix + AZURE.replace("\n", newline).rstrip()
    specs = AzureTrace(write(tmp_path, text), shape=AS_IS).requests(WINDOW)
    assert [spec.arrival_ns for spec in specs] == [0, 4_314_579_000, 4_541_877_100]
    assert [(spec.request_id, spec.num_prompt_tokens, spec.num_output_tokens) for spec in specs] == [
        ("r00000", 374, 44),
        ("r00001", 396, 109),
        ("r00002", 879, 55),
    ]


def test_azure_columns_in_another_order_and_empty_lines(tmp_path: Path) -> None:
    text = "Extra, GeneratedTokens ,TIMESTAMP,ContextTokens\n\nx,5,2023-11-16 18:15:46,7.0\n\n"
    assert lengths(AzureTrace(write(tmp_path, text), shape=AS_IS)) == [("r00000", 7, 5)]


@pytest.mark.parametrize(
    ("cell", "nanoseconds"),
    [
        ("1970-01-01 00:00:01", 1_000_000_000),
        ("1970-01-01T00:00:00.000000001Z", 1),
        ("2024-05-10 00:00:00.009930+00:00", 1_715_299_200_009_930_000),
        ("2024-05-10 02:00:00.009930+02:00", 1_715_299_200_009_930_000),
        ("2023-11-16 18:15:46.6805900", 1_700_158_546_680_590_000),
        ("2023-11-16 18:15:46.6805901", 1_700_158_546_680_590_100),
    ],
)
def test_timestamps(cell: str, nanoseconds: int) -> None:
    assert timestamp_ns(cell) == nanoseconds


@pytest.mark.parametrize("cell", ["", "yesterday", "2023-13-16 18:15:46", "2023-11-16", "1700158546.68"])
def test_timestamps_that_are_none(cell: str) -> None:
    with pytest.raises(ValueError, match="is not a timestamp"):
        timestamp_ns(cell)


@pytest.mark.parametrize(("cell", "count"), [("374", 374), (" 7 ", 7), ("374.0", 374), (12, 12), ("0", 0)])
def test_token_counts(cell: object, count: int) -> None:
    assert token_count(cell) == count


@pytest.mark.parametrize(
    ("cell", "what"),
    [
        ("", "not a whole number"),
        ("many", "not a whole number"),
        ("3.5", "not a whole number"),
        ("nan", "not a whole number"),
        ("inf", "not a whole number"),
        (True, "not a whole number"),
        (None, "not a whole number"),
        ([1], "not a whole number"),
        (10**400, "not a whole number"),
        ("-3", "is negative"),
        (-3, "is negative"),
        ("1e12", "too large"),
    ],
)
def test_token_counts_that_are_none(cell: object, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        token_count(cell)


def test_rows_out_of_time_order_keep_the_id_of_their_line(tmp_path: Path) -> None:
    header, first, second, third = AZURE.splitlines()
    text = "\n".join([header, second, first, third])
    specs = AzureTrace(write(tmp_path, text), shape=AS_IS).requests(WINDOW)
    assert [spec.request_id for spec in specs] == ["r00001", "r00000", "r00002"]
    assert [spec.arrival_ns for spec in specs] == [0, 4_314_579_000, 4_541_877_100]


def test_lengths_csv_takes_arrivals_from_a_generator(tmp_path: Path) -> None:
    workload = LengthsCsv(write(tmp_path, LENGTHS), rate_per_s=2.0, shape=AS_IS)
    assert lengths(workload) == [("r00000", 74, 918), ("r00001", 290, 905)]
    first, second = workload.requests(WINDOW)
    assert first.arrival_ns == 0 < second.arrival_ns


def test_lengths_csv_with_other_columns(tmp_path: Path) -> None:
    workload = LengthsCsv(
        write(tmp_path, LENGTHS),
        prompt_column="num_total_tokens",
        output_column="num_prefill_tokens",
        rate_per_s=1.0,
        shape=AS_IS,
    )
    assert lengths(workload) == [("r00000", 992, 74), ("r00001", 1195, 290)]


def test_lengths_csv_needs_a_rate(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"workload\.rate_per_s is not set"):
        LengthsCsv(write(tmp_path, LENGTHS)).requests(WINDOW)


def test_mooncake_as_recorded(tmp_path: Path) -> None:
    specs = MooncakeTrace(write(tmp_path, MOONCAKE), tick_s=None, shape=AS_IS).requests(WINDOW)
    assert [spec.arrival_ns for spec in specs] == [0, 0, 2_999_000_000, 6_000_000_000]
    assert [(spec.num_prompt_tokens, spec.num_output_tokens) for spec in specs] == [
        (6758, 500),
        (7322, 490),
        (891, 1),
        (1000, 20),
    ]


def test_mooncake_rows_are_served_in_order_of_time_and_within_a_moment_in_that_of_the_file(
    tmp_path: Path,
) -> None:
    first, second, third, fourth = MOONCAKE.splitlines()
    text = "\n".join([fourth, second, third, first])
    specs = MooncakeTrace(write(tmp_path, text), tick_s=None, shape=AS_IS).requests(WINDOW)
    assert [(spec.request_id, spec.arrival_ns, spec.num_prompt_tokens) for spec in specs] == [
        ("r00001", 0, 7322),
        ("r00003", 0, 6758),
        ("r00002", 2_999_000_000, 891),
        ("r00000", 6_000_000_000, 1000),
    ]


def test_mooncake_batches_are_spread_inside_their_ticks_in_the_order_of_the_file(tmp_path: Path) -> None:
    line = '{{"timestamp": {}, "input_length": {}, "output_length": 9}}\n'
    stamps = [stamp for stamp in (0, 2999, 6001, 9000) for _ in range(500)]
    path = write(tmp_path, "".join(line.format(stamp, i + 1) for i, stamp in enumerate(stamps)))
    rows = MooncakeTrace(path, seed=3, tick_s=3.0).read()
    assert rows.num_prompt_tokens.tolist() == list(range(1, 2001))
    assert (rows.arrival_ns // 3_000_000_000).tolist() == [tick for tick in range(4) for _ in range(500)]
    inside = rows.arrival_ns % 3_000_000_000
    assert inside.mean() == pytest.approx(1.5e9, rel=0.05)
    assert inside.std() == pytest.approx(3e9 / np.sqrt(12), rel=0.05)
    assert (rows.arrival_ns != MooncakeTrace(path, seed=4, tick_s=3.0).read().arrival_ns).any()


def test_zero_lengths_become_one_token_and_are_counted(tmp_path: Path) -> None:
    text = AZURE.replace(",44", ",0").replace(",55", ",0").replace(",396,", ",0,")
    workload = AzureTrace(write(tmp_path, text), shape=AS_IS)
    assert lengths(workload) == [("r00000", 374, 1), ("r00001", 1, 109), ("r00002", 879, 1)]
    assert workload.prepare(WINDOW).notes[1:] == (
        "lengths: 1 of 3 requests have an empty prompt: served as 1 token",
        "lengths: 2 of 3 requests have an empty output: served as 1 token",
    )


def test_the_slice_that_comes_with_the_reader() -> None:
    workload = AzureTrace(shape=AS_IS)
    specs = workload.requests(WINDOW)
    assert len(specs) == 2000
    assert lengths(workload)[:2] == [("r00000", 374, 44), ("r00001", 396, 109)]
    assert specs[-1].arrival_ns == 424_259_457_000  # 18:22:50.9400470 after 18:15:46.6805900


CSV_ERRORS = {
    "negative": (AZURE.replace("396", "-396"), "line 3, column ContextTokens: '-396' is negative"),
    "not a number": (AZURE.replace(",55", ",x"), "line 4, column GeneratedTokens: 'x' is not a whole number"),
    "empty cell": (AZURE.replace(",44", ","), "line 2, column GeneratedTokens: '' is not a whole number"),
    "after an empty line": (AZURE.replace("2023-11-16 18:15:51", "\nno"), "line 5, column TIMESTAMP: 'no"),
    "cell missing": (AZURE.replace(",109", ""), "line 3: 2 cells instead of 3"),
    "one cell more": (AZURE.replace(",109", ",109,1"), "line 3: 4 cells instead of 3"),
    "open quote": (AZURE.replace(",109", ',"109'), "line 4: not CSV"),
    "column missing": (
        AZURE.replace("ContextTokens", "Context"),
        "no column ContextTokens in its header; columns found: TIMESTAMP, Context, GeneratedTokens",
    ),
    "header only": (AZURE.splitlines()[0], "the trace is empty"),
    "nothing at all": ("", "no column TIMESTAMP or ContextTokens or GeneratedTokens in its header"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), CSV_ERRORS.values(), ids=CSV_ERRORS)
def test_bad_csv_names_file_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(WorkloadError, match=re.escape(message)) as error:
        AzureTrace(path).requests(WINDOW)
    assert path in str(error.value)


JSON_ERRORS = {
    "not JSON": (MOONCAKE.replace('{"timestamp": 2999', '{timestamp": 2999'), "line 3: not JSON: Expecting"),
    "cut short": (MOONCAKE[:-20], "line 4: not JSON: "),
    "not an object": (MOONCAKE + "[1, 2]\n", "line 5: not a JSON object"),
    "negative": (MOONCAKE.replace("490", "-490"), "line 2, column output_length: -490 is negative"),
    "not a number": (MOONCAKE.replace("7322", '"x"'), "line 2, column input_length: 'x' is not a whole"),
    "bad time": (MOONCAKE.replace("2999", "null"), "line 3, column timestamp: None is not a time"),
    "field missing": (
        MOONCAKE.replace('"output_length": 490, ', ""),
        "line 2: no field output_length; fields found: timestamp, input_length, hash_ids",
    ),
    "empty": ("\n\n", "the trace is empty"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), JSON_ERRORS.values(), ids=JSON_ERRORS)
def test_bad_json_names_file_line_and_field(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(WorkloadError, match=re.escape(message)) as error:
        MooncakeTrace(path).requests(WINDOW)
    assert path in str(error.value)


@pytest.mark.parametrize("reader", [AzureTrace, LengthsCsv, MooncakeTrace])
def test_path_missing(tmp_path: Path, reader: type[AzureTrace | LengthsCsv | MooncakeTrace]) -> None:
    if reader is not AzureTrace:  # which comes with a slice
        with pytest.raises(WorkloadError, match=r"workload\.path must name the trace \(where to get"):
            reader().requests(WINDOW)
    for path in (tmp_path / "nowhere.csv", tmp_path):
        with pytest.raises(WorkloadError, match=r"there is no file .* \(where to get it: https"):
            reader(str(path)).requests(WINDOW)


def test_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(AZURE.encode() + b"\xff\xfe\x00")
    with pytest.raises(WorkloadError, match="not UTF-8 text"):
        AzureTrace(str(path)).requests(WINDOW)


def test_nul_bytes_are_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="line 3"):
        AzureTrace(write(tmp_path, AZURE.replace("396", "3\x0096"))).requests(WINDOW)
