"""The sweep over the decoders of transformers, on a few of them."""

import os
import time

import pytest

from experiments import model_sweep, tiny_models


def test_a_few_models_are_judged_and_written_down(tmp_path, capsys):
    out = tmp_path / "models.md"
    assert (
        model_sweep.main(["--only", "llama", "llama4_text", "bloom", "gemma4_assistant", "--out", str(out)])
        == 0
    )
    assert capsys.readouterr().out.splitlines()[-1] == "2 equal, 1 not built, 1 refused"
    table = out.read_text()
    assert "| llama | equal | " in table
    assert "| llama4_text | equal | " in table
    assert "| bloom | refused | BloomForCausalLM cannot be served: 0 calls for 4 layers came through" in table
    assert "| gemma4_assistant | not built | StrictDataclassClassValidationError" in table


def test_a_model_that_is_served_wrong_is_told_and_the_exit_is_1(monkeypatch, capsys):
    right = model_sweep.served

    def wrong(model):
        answers = right(model)
        answers[1][3] += 1
        return answers

    monkeypatch.setattr(model_sweep, "served", wrong)
    assert model_sweep.main(["--only", "llama"]) == 1
    assert "wrong      [16, 15, 16] of 16 tokens equal" in capsys.readouterr().out
    monkeypatch.setattr(model_sweep, "served", lambda model: 1 / 0)  # an engine that fails is wrong too
    assert model_sweep.main(["--only", "llama"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("judge", "result", "words"),
    [
        (lambda model_type: os._exit(3), "wrong", "the process died"),
        (lambda model_type: time.sleep(60), "not built", "no answer within 1 s"),
    ],
    ids=["crash", "hang"],
)
def test_a_model_that_crashes_or_hangs_takes_nothing_with_it(monkeypatch, judge, result, words):
    monkeypatch.setattr(model_sweep, "judge", judge)
    assert model_sweep.isolated("llama", limit_s=1) == ("llama", result, words)


def test_limits_of_tiny_models_are_in_force_and_every_kind_of_layer_is_there():
    config = tiny_models.tiny_config("gemma3_text")
    assert (config.sliding_window, config.num_hidden_layers, config.vocab_size) == (8, 4, 101)
    assert set(config.layer_types) == {"sliding_attention", "full_attention"}
    config = tiny_models.tiny_config("llama4_text")
    assert (config.attention_chunk_size, config.floor_scale, config.attn_scale) == (16, 8, 1.0)
    assert len(tiny_models.architectures()) > 150
