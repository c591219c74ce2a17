# simulate -> cross-check, preprocess -> train, baseline -> infer -> evaluate -> report. One file of configuration is one run:
#   snakemake                                 all of config/demo.yaml, on all cores (profiles/default)
#   snakemake --configfile config/paper.yaml  another run: the file replaces the demo, it is never merged into it
#   snakemake train, snakemake -R train       a stage with what it needs; a stage once more, whatever was there
#   snakemake --profile slurm                 on a cluster (profiles/slurm)
from snakemake.utils import min_version

min_version("9.27")


include: "workflow/rules/common.smk"


RUN = read_run()
RESULTS = f"results/{RUN.run}"


onstart:
    hold_folder()


wildcard_constraints:
    study=one_of(RUN.studies),
    model=one_of({model for study in RUN.studies.values() for model in study.models}),


container: IMAGE


include: "workflow/rules/simulate.smk"
include: "workflow/rules/cross_check.smk"
include: "workflow/rules/preprocess.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/sweep.smk"
include: "workflow/rules/baseline.smk"
include: "workflow/rules/infer.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


# The default, whatever the order of the includes.
rule all:
    default_target: True
    input:
        up_to("report"),
    localrule: True
