"""Checkpoint directories that are not whole, or hold another model than they say."""

import json
import logging

import pytest
import torch

from engine.core.errors import UserError
from engine.runtime.model import load_checkpoint, load_dummy
from tests.runtime.support import SMALL, build, generate, prompts, request, run


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint in three shards, and its model."""
    directory = tmp_path_factory.mktemp("saved")
    plain = build("llama")
    plain.save_pretrained(directory, max_shard_size="50KB")
    return directory, plain


@pytest.fixture
def checkpoint(saved, tmp_path):
    """A copy of it, to break."""
    for path in saved[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def shards(directory):
    return sorted(directory.glob("*.safetensors"))


def test_a_checkpoint_in_shards_is_served(checkpoint, saved):
    assert len(shards(checkpoint)) > 1
    prompt = prompts((9,))[0]
    recorder = run(load_checkpoint(checkpoint), [request("a", prompt, 6)])
    assert recorder.tokens["a", 0] == generate(saved[1], prompt, 6)


def test_what_is_not_there_is_named(checkpoint):
    with pytest.raises(UserError, match=r"nowhere: no config\.json here"):
        load_checkpoint(checkpoint / "nowhere")
    shards(checkpoint)[1].unlink()
    with pytest.raises(UserError, match=r"model-00002-of-0000\d\.safetensors is missing; the index names"):
        load_checkpoint(checkpoint)
    (checkpoint / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match=r"index\.json: no index of shards: KeyError: 'weight_map'"):
        load_checkpoint(checkpoint)
    (checkpoint / "model.safetensors.index.json").unlink()
    for shard in shards(checkpoint):
        shard.unlink()
    with pytest.raises(UserError, match=f"{checkpoint}: a checkpoint directory without weights"):
        load_checkpoint(checkpoint)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (lambda whole: b"", "an empty file; copy or download it again"),
        (lambda whole: POINTER, "a pointer of git-lfs, not the weights; run `git lfs pull`"),
        (lambda whole: whole[:-1], r"\d+ of \d+ bytes, cut off"),
        (lambda whole: whole[:100], "100 bytes, cut off in its header"),
        (lambda whole: whole[:5], "5 bytes, cut off in its header"),
        (lambda whole: (4).to_bytes(8, "little") + b"nope", "no safetensors file: JSONDecodeError"),
    ],
    ids=["empty", "lfs", "truncated", "header", "bytes", "garbage"],
)
def test_a_broken_shard_is_an_error_that_names_it(checkpoint, broken, reason):
    shard = shards(checkpoint)[1]
    shard.write_bytes(broken(shard.read_bytes()))
    with pytest.raises(UserError, match=f"{shard}: {reason}"):
        load_checkpoint(checkpoint)


def test_missing_and_unused_weights_are_errors(tmp_path):
    model = build("llama")
    weights = model.state_dict()
    model.save_pretrained(tmp_path, state_dict={n: x for n, x in weights.items() if "layers.1.mlp" not in n})
    with pytest.raises(UserError, match=r"3 weights are missing .* such as model\.layers\.1\.mlp"):
        load_checkpoint(tmp_path)
    # Biases that Qwen2 has and Llama has not: served without them, the tokens would be another model's.
    extra = {f"model.layers.{i}.self_attn.q_proj.bias": torch.zeros(32) for i in range(3)}
    model.save_pretrained(tmp_path, state_dict=weights | extra)
    with pytest.raises(
        UserError,
        match=r"3 weights in the files are not used by LlamaForCausalLM, such as model\.layers\.0\.self_attn",
    ):
        load_checkpoint(tmp_path)
    model.save_pretrained(tmp_path, state_dict=weights | {"lm_head.weight": torch.zeros(7, 32)})
    with pytest.raises(UserError, match=r"lm_head\.weight is \(7, 32\) in the files, and \(101, 32\) in"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "lama"}, "ValueError: .*`lama`"),
        ({"hidden_size": "wide"}, "expected int, got str"),
        (None, "JSON|json"),
    ],
    ids=["type", "value", "syntax"],
)
def test_a_bad_config_file_is_named(checkpoint, change, reason):
    path = checkpoint / "config.json"
    path.write_text("{" if change is None else json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=rf"config\.json: .*({reason})"):
        load_checkpoint(checkpoint)


def test_sampling_defaults_of_the_checkpoint_are_said_to_be_ignored(checkpoint, caplog):
    path = checkpoint / "generation_config.json"
    path.write_text(json.dumps({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [1, 2]}))
    with caplog.at_level(logging.WARNING):
        load_checkpoint(checkpoint)
    (told,) = [record.getMessage() for record in caplog.records if "generation_config" in record.getMessage()]
    assert told.startswith(
        f"{path}: do_sample=True, temperature=0.6, top_p=0.9, eos_token_id=[1, 2]: not used"
    )
    assert "set workload.shape.temperature, .top_k, .top_p and .stop_token_ids" in told
    caplog.clear()
    path.write_text(json.dumps({"temperature": 0.6, "bos_token_id": 1}))  # greedy: nothing to ignore
    load_checkpoint(checkpoint)
    assert not [record for record in caplog.records if record.name.startswith("engine")]
    path.write_text("[]")
    with pytest.raises(UserError, match=r"generation_config\.json: AttributeError"):
        load_checkpoint(checkpoint)


def test_configs_that_cannot_be():
    with pytest.raises(
        UserError,
        match=r"model\.config\.hiden_size: LlamaConfig knows no such key; did you mean hidden_size\?",
    ):
        load_dummy("LlamaConfig", {**SMALL, "hiden_size": 32})
    with pytest.raises(UserError, match=r"model\.config: LlamaConfig: .*expected int, got str"):
        load_dummy("LlamaConfig", {**SMALL, "hidden_size": "wide"})
    with pytest.raises(UserError, match=r"model\.config: .*hidden_act|no model can be built"):
        load_dummy("LlamaConfig", {**SMALL, "hidden_act": "slu"})
    assert (
        load_dummy("LlamaConfig", {**SMALL, "rope_theta": 5e5}).module.config.rope_parameters["rope_theta"]
        == 5e5
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="a device that is there")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "cdua"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_loaded(device, checkpoint):
    for load in (
        lambda: load_dummy("LlamaConfig", SMALL, device=device),
        lambda: load_checkpoint(checkpoint, device=device),
    ):
        with pytest.raises(
            UserError, match=rf"model\.device={device}: not usable .* model\.device=cpu"
        ) as told:
            load()
        assert "\n" not in str(told.value)


def test_a_number_of_threads_that_cannot_be():
    with pytest.raises(UserError, match="num_threads is 0: give 1 or more, or null"):
        run(load_dummy("LlamaConfig", SMALL), [], num_threads=0)
