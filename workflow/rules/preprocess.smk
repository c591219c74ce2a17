# Noise, cut and normalisation: stored counts become features.
rule preprocess:
    input:
        made_by("preprocess"),
    localrule: True


rule preprocess_study:
    input:
        simulations=f"{RESULTS}/{{study}}/simulate/manifest.json",
    output:
        manifest=f"{RESULTS}/{{study}}/preprocess/manifest.json",
    log:
        f"{RESULTS}/{{study}}/logs/preprocess_study.log",
    benchmark:
        f"{RESULTS}/{{study}}/benchmarks/preprocess_study.tsv"
    priority: 1000
    localrule: fans_out("preprocess_study")
    conda:
        "../../envs/environment.cpu.yaml"
    container:
        image_of("preprocess_study")
    threads: max(1, (workflow.cores or 1) // len(RUN.studies))  # studies side by side: each has parts that use one core
    resources:
        mem_mb=4000,
        runtime=240,
    params:
        determined_by=determined_by("preprocess"),
    script:
        "../scripts/preprocess_study.py"
