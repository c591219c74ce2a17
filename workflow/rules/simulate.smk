# One job per study: it sees which shards are missing, spreads them over its cores and checks every shard at the end.
rule simulate:
    input:
        made_by("simulate"),
    localrule: True


rule simulate_study:
    output:
        manifest=f"{RESULTS}/{{study}}/simulate/manifest.json",
    log:
        f"{RESULTS}/{{study}}/logs/simulate_study.log",
    benchmark:
        f"{RESULTS}/{{study}}/benchmarks/simulate_study.tsv"
    priority: 1000 * (1 + (workflow.cores or 1))  # above any other jobs together: what needs all cores would wait for them
    localrule: fans_out("simulate_study")
    conda:
        "../../envs/environment.cpu.yaml"
    container:
        image_of("simulate_study")
    threads: workflow.cores
    resources:
        mem_mb=4000,
        runtime=1440,
    params:
        determined_by=determined_by("simulate"),
    script:
        "../scripts/simulate_study.py"
