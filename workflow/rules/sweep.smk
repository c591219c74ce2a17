# Trainings of one model with varied options, where the configuration has a section `sweep`; the best becomes a bundle.
rule sweep:
    input:
        made_by("sweep"),
    localrule: True


rule run_sweep:
    input:
        features=f"{RESULTS}/{{study}}/preprocess/manifest.json",
    output:
        manifest=f"{RESULTS}/{{study}}/sweep/manifest.json",
    log:
        f"{RESULTS}/{{study}}/logs/run_sweep.log",
    benchmark:
        f"{RESULTS}/{{study}}/benchmarks/run_sweep.tsv"
    localrule: fans_out("run_sweep")
    conda:
        "../../envs/environment.gpu.yaml"
    container:
        image_of("run_sweep")
    threads: workflow.cores
    resources:
        mem_mb=6000,
        runtime=1440,
    params:
        determined_by=determined_by("sweep"),
    script:
        "../scripts/run_sweep.py"
