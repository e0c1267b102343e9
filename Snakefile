from snakemake.utils import min_version

from worldtune.recipe.project import config_path, read_config

min_version("9.27")

# Snakemake's own reader names no line of what is wrong.
read_config(config_path())


configfile: os.environ.get("WORLDTUNE_CONFIG", "config/config.yaml")


include: "rules/common.smk"
include: "rules/checkpoints.smk"
include: "rules/dataset.smk"
include: "rules/train.smk"
include: "rules/results.smk"


rule all:
    default_target: True
    input:
        get_final_output(),
    localrule: True
