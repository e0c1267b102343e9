from worldtune.workflow.why import _parse, describe

TEXT = """
[Sun Nov 22 00:53:32 2026]
rule captions:
    output: datasets/clips/manifests/captions/0001.parquet
    jobid: 4
    reason: Params have changed since last execution: Union of exclusive params before and now across all output:
        before: [['a.mp4', None, None, '11'], ['b.mp4', None, None, '22']], '0123456789ab-cdef'
        now: [['a.mp4', None, None, '11'], ['b.mp4', None, None, '33']], '0123456789ab-aaaa'
    wildcards: dataset=clips, shard=0001

[Sun Nov 22 00:53:32 2026]
rule train:
    output: results/tiny/manifest.json
    jobid: 5
    reason: Input files updated by another job: datasets/clips/dataset.json
"""


def test_one_entry_of_a_listing_is_told_apart() -> None:
    captions, train = _parse(TEXT)
    assert captions.rule == "captions"
    assert captions.before == ("['b.mp4', None, None, '22']",)
    assert captions.now == ("['b.mp4', None, None, '33']",)
    assert train.reason.startswith("Input files updated")


def test_nothing_is_said_in_words() -> None:
    assert describe([]) == "nothing would run again"
