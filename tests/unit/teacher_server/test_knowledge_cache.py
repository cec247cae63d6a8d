from __future__ import annotations

import torch

from teacher_server.engine.knowledge_cache import KnowledgeCache, row_keys
from teacher_server.metrics.metrics import Metrics

IDS = torch.tensor([[5, 6, 7], [5, 6, 0]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])


def rows(count: int, size: int = 4) -> list[dict[str, torch.Tensor]]:
    return [{"pooled": torch.full((size,), float(number))} for number in range(count)]


def test_a_row_has_its_key_whatever_its_batch_and_padding() -> None:
    keys = row_keys({"input_ids": IDS, "attention_mask": MASK})
    alone = row_keys({"input_ids": IDS[1:, :2], "attention_mask": MASK[1:, :2]})
    padded = torch.nn.functional.pad(IDS, (0, 4), value=9)
    longer = row_keys({"attention_mask": torch.nn.functional.pad(MASK, (0, 4)), "input_ids": padded})
    assert keys[0] != keys[1]
    assert alone == keys[1:]
    assert longer == keys


def test_keys_tell_values_masks_dtypes_and_ports() -> None:
    one = row_keys({"input_ids": IDS, "attention_mask": torch.ones_like(MASK)})
    others = [
        row_keys({"input_ids": IDS}),
        row_keys({"input_ids": IDS.int()}),
        row_keys({"input_ids": IDS + 1, "attention_mask": torch.ones_like(MASK)}),
        row_keys({"input_ids": IDS, "attention_mask": torch.tensor([[1, 0, 1], [0, 1, 1]])}),
        row_keys({"pixel_values": IDS}),
    ]
    found = {key for keys in [one, *others] for key in keys}
    assert len(found) == 12


def test_text_is_blind_to_zero_padding_and_images_are_not_cut() -> None:
    text = torch.tensor([[104, 105, 0, 0]], dtype=torch.uint8)
    assert row_keys({"text": text}) == row_keys({"text": text[:, :2]})
    image = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    assert row_keys({"image": image}) != row_keys({"image": image[..., :3]})
    assert row_keys({"image": image}) != row_keys({"image": image.reshape(1, 3, 2, 8)})


def test_hit_miss_and_partial_ports() -> None:
    metrics = Metrics()
    cache = KnowledgeCache(1000, metrics)
    assert cache.find([b"a", b"b"], ["pooled"]) == [None, None]
    cache.keep(b"a", rows(1)[0])
    found = cache.find([b"a", b"b"], ["pooled"])
    assert found[0] is not None
    assert torch.equal(found[0]["pooled"], torch.zeros(4))
    assert found[1] is None
    assert cache.find([b"a"], ["pooled", "logits"]) == [None]
    value = metrics.registry.get_sample_value
    assert value("teacher_knowledge_cache_hits_total") == 1
    assert value("teacher_knowledge_cache_misses_total") == 4


def test_the_budget_keeps_what_was_used_last() -> None:
    metrics = Metrics()
    cache = KnowledgeCache(48, metrics)  # three rows of four floats
    for name, row in zip((b"a", b"b", b"c"), rows(3), strict=True):
        cache.keep(name, row)
    cache.find([b"a"], ["pooled"])
    cache.keep(b"d", rows(1)[0])
    kept = [row is not None for row in cache.find([b"a", b"b", b"c", b"d"], ["pooled"])]
    assert kept == [True, False, True, True]
    assert cache.size_bytes == 48
    assert metrics.registry.get_sample_value("teacher_knowledge_cache_bytes") == 48


def test_a_row_kept_again_is_counted_once_and_one_too_big_is_not_kept() -> None:
    cache = KnowledgeCache(48, Metrics())
    for _ in range(3):
        cache.keep(b"a", rows(1)[0])
    assert cache.size_bytes == 16
    cache.keep(b"b", rows(1, size=100)[0])
    assert cache.size_bytes == 0
    nothing = KnowledgeCache(0, Metrics())
    nothing.keep(b"a", rows(1)[0])
    assert nothing.find([b"a"], ["pooled"]) == [None]
