# Likelihood-free baselines on the same simulations; they need no model.
rule baseline:
    input:
        made_by("baseline"),
    localrule: True


rule run_baselines:
    input:
        features=f"{RESULTS}/{{study}}/preprocess/manifest.json",
    output:
        manifest=f"{RESULTS}/{{study}}/baseline/manifest.json",
    log:
        f"{RESULTS}/{{study}}/logs/run_baselines.log",
    benchmark:
        f"{RESULTS}/{{study}}/benchmarks/run_baselines.tsv"
    priority: 40
    conda:
        "../../envs/environment.cpu.yaml"
    threads: 1
    resources:
        mem_mb=6000,
        runtime=240,
    params:
        determined_by=determined_by("baseline"),
    script:
        "../scripts/run_baselines.py"
