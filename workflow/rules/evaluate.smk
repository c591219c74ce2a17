# Information gain, errors, calibration: every estimator on the same held-back simulations.
rule evaluate:
    input:
        made_by("evaluate"),
    localrule: True


rule evaluate_study:
    input:
        features=f"{RESULTS}/{{study}}/preprocess/manifest.json",
        bundles=bundles_of_study,
        posteriors=f"{RESULTS}/{{study}}/infer/manifest.json",
        baselines=f"{RESULTS}/{{study}}/baseline/manifest.json",
    output:
        metrics=f"{RESULTS}/{{study}}/evaluate/metrics.json",
    log:
        f"{RESULTS}/{{study}}/logs/evaluate_study.log",
    benchmark:
        f"{RESULTS}/{{study}}/benchmarks/evaluate_study.tsv"
    priority: 20
    conda:
        "../../envs/environment.cpu.yaml"
    threads: 1
    resources:
        mem_mb=6000,
        runtime=240,
    params:
        determined_by=determined_by("evaluate"),
    script:
        "../scripts/evaluate_study.py"
