"""The commands that messages about a dataset tell a person to run.

A stage has the name of its rule. Those that make one kind of control, controls and annotate, have a manifest for each
kind, and are then called controls-KIND and annotate-KIND.
"""


def rule_of(stage: str) -> str:
    """Return the name of the rule that runs a stage: "controls" for "controls-edge"."""
    return stage.partition("-")[0]


def force_command(dataset: str, *stages: str) -> str:
    """Return the command that runs stages of a dataset again, whatever the graph says; each redoes what is missing."""
    rules = " ".join(dict.fromkeys(map(rule_of, stages)))
    # The target first: snakemake takes every word behind the option for a rule.
    return f"`snakemake datasets/{dataset}/dataset.json --forcerun {rules}`"


def retry_command(dataset: str) -> str:
    """Return the command that tries again what failed in a way that may pass."""
    return f"`make retry DATASET={dataset}`"
