# Some stored simulations once more, by the other engine; above the tolerance the run fails.
rule cross_check:
    input:
        made_by("cross-check"),
    localrule: True


rule compare_engines:
    input:
        simulations=f"{RESULTS}/{{study}}/simulate/manifest.json",
    output:
        manifest=f"{RESULTS}/{{study}}/cross-check/manifest.json",
    log:
        f"{RESULTS}/{{study}}/logs/compare_engines.log",
    benchmark:
        f"{RESULTS}/{{study}}/benchmarks/compare_engines.tsv"
    conda:
        "../../envs/environment.cpu.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=120,
    params:
        determined_by=determined_by("cross-check"),
    script:
        "../scripts/compare_engines.py"
