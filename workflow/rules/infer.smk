# Posteriors of held-back simulations, of the expert sample and of real frames, with a verdict on each.
rule infer:
    input:
        made_by("infer"),
    localrule: True


rule infer_posterior:
    input:
        features=f"{RESULTS}/{{study}}/preprocess/manifest.json",
        bundles=bundles_of_study,
        frames=real_frames,
    output:
        manifest=f"{RESULTS}/{{study}}/infer/manifest.json",
    log:
        f"{RESULTS}/{{study}}/logs/infer_posterior.log",
    benchmark:
        f"{RESULTS}/{{study}}/benchmarks/infer_posterior.tsv"
    priority: 30
    conda:
        "../../envs/environment.cpu.yaml"
    threads: 1  # small matrices, which gain nothing from more; what waits for all cores waits for every training
    resources:
        mem_mb=6000,
        runtime=240,
    params:
        determined_by=determined_by("infer"),
    script:
        "../scripts/infer_posterior.py"
